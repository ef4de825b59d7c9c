"""WordNet 3.0 -> vit21k/manifest/data/synsets.parquet, WORDNET_LICENSE.

python tools/data/build_synsets.py [FOLDER]            rewrite
python tools/data/build_synsets.py [FOLDER] --check    exit 1 if the rows are not those of WordNet

FOLDER holds `data.noun`; default: where Debian's package `wordnet-base` puts it.  The layout of
that file is described in wndb(5WN): a licence in lines that start with a blank, then one synset a
line, sorted by its offset in the file, which is the number in its wnid.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file, write_atomic
from vit21k.manifest.wordnet import SCHEMA

WORDNET = Path("/usr/share/wordnet")
FOLDER = Path(__file__).parents[2] / "vit21k/manifest/data"
HYPERNYMS = ("@", "@i")  # hypernym; instance hypernym


def licence(lines: list[str]) -> str:
    """Return WordNet's licence, which stands in the numbered lines at the top of the file."""
    numbered = [line for line in lines if line.startswith("  ")]
    return "".join(line[3:].lstrip("0123456789 ").rstrip() + "\n" for line in numbered)


def synset(line: str) -> dict[str, object]:
    """Parse one synset.

    Its line is ``offset lexfile n W {lemma id} * W  P {pointer offset pos which} * P | gloss``;
    the number of words W is hexadecimal.
    """
    fields, _, gloss = line.partition(" | ")
    offset, _, _, num_lemmas, *rest = fields.split()
    lemmas = rest[: 2 * int(num_lemmas, 16) : 2]
    pointers = rest[2 * int(num_lemmas, 16) + 1 :]
    return {
        "wnid": f"n{offset}",
        "lemmas": [lemma.replace("_", " ") for lemma in lemmas],
        "gloss": gloss.strip(),
        "parents": [f"n{to}" for kind, to in _pairs(pointers) if kind in HYPERNYMS],
    }


def _pairs(pointers: list[str]) -> Iterator[tuple[str, str]]:
    return zip(pointers[::4], pointers[1::4], strict=True)


def table(lines: list[str]) -> pa.Table:
    """Return all nouns in order, the licence in the metadata."""
    rows = [synset(line) for line in lines if not line.startswith("  ")]
    metadata = {"source": "WordNet 3.0, data.noun", "license": licence(lines)}
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))


def write(synsets: pa.Table, path: Path) -> None:
    """Write the table; the bytes depend on the rows and the version of Arrow alone."""
    with atomic_file(path) as file:
        pq.write_table(
            synsets,
            file,
            compression="zstd",
            compression_level=19,
            row_group_size=len(synsets),
            use_dictionary=["parents.list.element"],
            column_encoding={"wnid": "DELTA_BYTE_ARRAY"},
            write_page_checksum=True,
            write_statistics=False,
        )


def main(arguments: list[str]) -> int:
    """Rewrite or check the files; return the exit status."""
    folders = [argument for argument in arguments if argument != "--check"]
    noun = (Path(folders[0]) if folders else WORDNET) / "data.noun"
    if not noun.is_file():
        print(f"no `{noun}`; install the Debian package wordnet-base, or name its folder")
        return 1
    wanted = table(noun.read_text(encoding="ascii").splitlines())
    path = FOLDER / "synsets.parquet"
    if "--check" in arguments:
        same = pq.read_table(path).equals(wanted)
        print(f"{path.name}: {'as' if same else 'NOT as'} in WordNet")
        return int(not same)
    write(wanted, path)
    write_atomic(FOLDER / "WORDNET_LICENSE", wanted.schema.metadata[b"license"])
    print(f"{path.name}: {wanted.num_rows:,} synsets, {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
