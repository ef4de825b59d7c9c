"""A file that `md5sum` printed -> digests.parquet."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from vit21k.errors import DataError
from vit21k.hashing.places import image_root, refuse_inside
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import manifest_writer, write_manifest
from vit21k.prep.ahead import ahead
from vit21k.prep.md5sum_lines import HINT, read_md5sum

_MD5_OF_NOTHING = bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """Counts of a run of `import_md5sum`.

    Attributes:
        num_files: Lines, and rows of `digests.parquet`.
        num_empty: Of those, how many have the MD5 of an empty file.
    """

    num_files: int
    num_empty: int


def import_md5sum(
    md5sum: Path, manifests: Path, *, strip_prefix: str = "", root: Path | None = None
) -> ImportSummary:
    """Write `digests.parquet` from what `md5sum` printed, in the order of its lines.

    Args:
        md5sum: The file.
        manifests: Folder to write to.
        strip_prefix: The folder that every path begins with, to be taken off.
        root: The image root, for the commands that open images; the paths are relative to it.

    Raises:
        DataError: No such file, or a line that is malformed or does not begin with
            *strip_prefix*; the message has its number.  Nothing is written.
        ImageTreeError: *root* is not a folder with class folders.
        UsageError: *manifests* lies inside *root*.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    root_text = str(image_root(root)[0]) if root else ""
    refuse_inside(manifests, root_text)
    if not md5sum.is_file():
        raise DataError(f"no such file: `{md5sum}`", hint=HINT)
    header = Header(algorithm="md5", root=root_text)
    num_empty = 0
    with locked(manifests, command="import-md5sum"):
        write_manifest(PROBLEMS.schema.empty_table(), PROBLEMS, manifests, header)
        with md5sum.open("rb") as file, manifest_writer(DIGESTS, manifests, header) as digests:
            for rows in ahead(read_md5sum(file, str(md5sum), strip_prefix=strip_prefix)):
                digests.write(rows)
                num_empty += pc.sum(pc.equal(rows["digest"], _MD5_OF_NOTHING)).as_py()
            if not digests.num_rows:
                raise DataError(f"`{md5sum}` is empty", hint=HINT)
    return ImportSummary(num_files=digests.num_rows, num_empty=num_empty)
