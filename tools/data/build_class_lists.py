"""timm's class lists -> vit21k/manifest/data/class_lists.parquet.

python tools/data/build_class_lists.py            rewrite
python tools/data/build_class_lists.py --check    exit 1 if the rows are not those of timm's files

The files lie in the installed package timm (Apache-2.0), in `timm/data/_info`.
"""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file
from vit21k.manifest.class_lists import KNOWN_LISTS, table_of
from vit21k.manifest.classes import ClassList

PATH = Path(__file__).parents[2] / "vit21k/manifest/data/class_lists.parquet"


def timm_folder() -> Path | None:
    """Return the folder of timm's files, without importing timm: that takes seconds."""
    spec = find_spec("timm")
    return Path(spec.origin).parent / "data" / "_info" if spec and spec.origin else None


def table(folder: Path) -> pa.Table:
    """Return all lists; refuse a file that is not the list that `KNOWN_LISTS` says it is."""
    lists = {}
    for known in KNOWN_LISTS.values():
        if known.file:
            classes = ClassList.read_text(folder / f"{known.file}.txt")
            if classes.fingerprint != known.fingerprint or len(classes) != known.num_classes:
                raise SystemExit(f"{known.file}.txt is another list: {classes.fingerprint}")
            lists[known.name] = classes.wnids
    source = f"timm {version('timm')}, timm/data/_info/*_synsets.txt"
    return table_of(lists, {"source": source, "license": "Apache-2.0"})


def main(arguments: list[str]) -> int:
    """Rewrite or check the file; return the exit status."""
    folder = timm_folder()
    if folder is None:
        print("timm is not installed")
        return 1
    wanted = table(folder)
    if "--check" in arguments:
        same = pq.read_table(PATH).equals(wanted)
        print(f"{PATH.name}: {'as' if same else 'NOT as'} in timm")
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
