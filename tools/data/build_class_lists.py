"""Class lists of others -> vit21k/manifest/data/class_lists.parquet.

python tools/data/build_class_lists.py [DIR]      rewrite
python tools/data/build_class_lists.py --check    exit 1 if the rows are not those of the lists

Most lists are files of the installed package timm (Apache-2.0), in `timm/data/_info`.  The others
are read from DIR/<name>.txt, one wnid per line, or kept from the table that there is.  Every list
must have the fingerprint that `class_lists.py` states next to its source.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file
from vit21k.manifest.class_lists import (
    KNOWN_LISTS,
    OTHER_LISTS,
    TIMM,
    KnownList,
    table_of,
    wnids_of,
)
from vit21k.manifest.classes import ClassList

PATH = Path(__file__).parents[2] / "vit21k/manifest/data/class_lists.parquet"


def timm_folder() -> Path | None:
    """Return the folder of timm's files, without importing timm: that takes seconds."""
    spec = find_spec("timm")
    return Path(spec.origin).parent / "data" / "_info" if spec and spec.origin else None


def timm_file(known: KnownList) -> str | None:
    """Return the name of timm's file with a list; None if it has none."""
    before, after = TIMM.split("{}")
    is_of_timm = known.source.startswith(before)
    return known.source.removeprefix(before).removesuffix(after) + ".txt" if is_of_timm else None


def table(timm: Path, folder: Path | None) -> pa.Table:
    """Return all lists; refuse a file that is not the list that its fingerprint says it is."""
    lists = {}
    for known in (*KNOWN_LISTS.values(), *OTHER_LISTS.values()):
        path = folder / f"{known.name}.txt" if folder else None
        if name := timm_file(known):
            path = timm / name
        if path and path.exists():
            classes = ClassList.read_text(path)
        else:
            classes = ClassList(wnids_of(known.name))
        if classes.fingerprint != known.fingerprint or len(classes) != known.num_classes:
            raise SystemExit(f"{path or PATH} is not `{known.name}`: {classes.fingerprint}")
        lists[known.name] = classes.wnids
    return table_of(lists)


def main(arguments: list[str]) -> int:
    """Rewrite or check the file; return the exit status."""
    timm = timm_folder()
    if timm is None:
        print("timm is not installed")
        return 1
    folders = [Path(argument) for argument in arguments if argument != "--check"]
    wanted = table(timm, folders[0] if folders else None)
    if "--check" in arguments:
        same = pq.read_table(PATH).equals(wanted)
        print(f"{PATH.name}: {'as' if same else 'NOT as'} in the sources")
        return int(not same)
    with atomic_file(PATH) as file:
        pq.write_table(
            wanted,
            file,
            compression="zstd",
            compression_level=19,
            use_dictionary=False,
            column_encoding=dict.fromkeys(wanted.schema.names[1:], "DELTA_BINARY_PACKED")
            | {"wnid": "DELTA_BYTE_ARRAY"},
            write_page_checksum=True,
            write_statistics=False,
        )
    print(f"{PATH.name}: {wanted.num_rows:,} classes, {PATH.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
