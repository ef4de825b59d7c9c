"""A file that `md5sum` printed -> digests.parquet."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.errors import DataError
from vit21k.hashing.places import image_root, refuse_inside
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.layout import OPTION as LABEL_OPTION
from vit21k.manifest.layout import LabelFrom, Layout
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import manifest_writer
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
    md5sum: Path,
    manifests: Path,
    *,
    strip_prefix: str = "",
    root: Path | None = None,
    label_from: LabelFrom | None = None,
) -> ImportSummary:
    """Write `digests.parquet` from what `md5sum` printed, in the order of its lines.

    Args:
        md5sum: The file.
        manifests: Folder to write to.
        strip_prefix: The folder that every path begins with, to be taken off.
        root: The image root, for the commands that open images; the paths are relative to it.
        label_from: Which folder of an image is its class; None: the one it lies in, if that can be
            a class.

    Raises:
        DataError: No such file, or a line that is malformed, does not begin with
            *strip_prefix* or has the path of another line; the message has its number.  Nothing is
            written.
        ImageTreeError: *root* is not a folder with class folders.
        LayoutError: The folders of the paths cannot be classes.
        UsageError: *manifests* lies inside *root*.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    root_text = str(image_root(root)[0]) if root else ""
    refuse_inside(manifests, root_text)
    if not md5sum.is_file():
        raise DataError(f"no such file: `{md5sum}`", hint=HINT)
    options = {LABEL_OPTION: label_from} if label_from else {}
    header = Header(algorithm="md5", root=root_text, options=options)
    layout = Layout(root_text or str(md5sum), label_from=label_from)
    read = partial(
        read_md5sum, name=str(md5sum), strip_prefix=strip_prefix, is_top=label_from == "top"
    )
    num_empty = 0
    paths = _PathHashes()
    with (
        locked(manifests, command="import-md5sum"),
        md5sum.open("rb") as file,
        manifest_writer(DIGESTS, manifests, header) as digests,  # moves into place last
        manifest_writer(PROBLEMS, manifests, header),
    ):
        for rows in ahead(read(file)):
            digests.write(rows)
            paths.add(rows)
            layout.add_rows(rows)
            num_empty += pc.sum(pc.equal(rows["digest"], _MD5_OF_NOTHING)).as_py()
        if not digests.num_rows:
            raise DataError(f"`{md5sum}` is empty", hint=HINT)
        if (repeated := paths.repeated()).size:
            _refuse_repeated(read(file), md5sum, repeated)
        layout.refuse()
    return ImportSummary(num_files=digests.num_rows, num_empty=num_empty)


class _PathHashes:
    """Hashes of all paths, 8 bytes each, which show whether one may have come twice."""

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, rows: pa.Table) -> None:
        """Take the paths of *rows*."""
        self._hashes.frombytes(_hashes_of(rows).tobytes())

    def repeated(self) -> NDArray[np.int64]:
        """Return those that came more than once."""
        hashes = np.frombuffer(self._hashes, dtype=np.int64)
        hashes.sort()
        repeated: NDArray[np.int64] = hashes[1:][hashes[1:] == hashes[:-1]]
        return repeated


def _hashes_of(rows: pa.Table) -> NDArray[np.int64]:
    return np.fromiter(map(hash, rows["path"].to_pylist()), np.int64, rows.num_rows)


def _refuse_repeated(tables: Iterator[pa.Table], md5sum: Path, hashes: NDArray[np.int64]) -> None:
    """Refuse the first path of two lines; go through all lines again for their numbers.

    Args:
        tables: The rows of all lines.
        md5sum: The file.
        hashes: Of the paths that may be in two lines.
    """
    first_of: dict[str, tuple[int, bytes]] = {}
    repeats: list[tuple[int, int, str, bool]] = []
    num_before = 0
    for rows in tables:
        places = np.flatnonzero(np.isin(_hashes_of(rows), hashes))
        suspects = rows.take(pa.array(places))
        columns = suspects["path"].to_pylist(), suspects["digest"].to_pylist()
        for place, path, digest in zip(places.tolist(), *columns, strict=True):
            number = num_before + place + 1
            first, other = first_of.setdefault(path, (number, digest))
            if first != number:
                repeats.append((number, first, path, other == digest))
        num_before += rows.num_rows
    if not repeats:  # two paths that happen to have one hash
        return
    number, first, path, is_same = repeats[0]
    what = "digest and path" if is_same else "path, with another digest,"
    raise DataError(
        f"`{md5sum}`, line {number:,} has the {what} of line {first:,}: {path!r}"
        + (f"; so have {len(repeats) - 1:,} more lines" if len(repeats) > 1 else ""),
        hint="each file belongs in it once; keep the first line of each path: "
        f"`awk '!seen[$0]++' {md5sum.name}`"
        if all(same for *_, same in repeats)
        else "the files have changed between two runs of `md5sum`: run it once, on all of them",
    )
