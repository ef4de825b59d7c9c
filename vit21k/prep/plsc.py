"""PLSC's text files: md5sum output in, training lists out."""

import binascii
import os
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.atomic import atomic_file
from vit21k.errors import DataError
from vit21k.lock import locked
from vit21k.manifest.io import Manifest, ManifestHeader, open_manifest
from vit21k.manifest.layout import OPTION as LABEL_OPTION
from vit21k.manifest.layout import LabelFrom, Layout
from vit21k.manifest.schema import DIGESTS, IMAGES, PROBLEMS, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer, refuse_inside
from vit21k.prep.dedup import as_digests, prefetched
from vit21k.prep.split import choose, refuse_published, single_labels
from vit21k.sources.folders import image_root

HINT = "expected the complete output of `md5sum FILE...` or `md5sum -z FILE...`"

_BLOCK_BYTES = 1 << 22
_NUM_HEX_DIGITS = 32
_PATH_AT = 34
_SHOWN_BYTES = 120
_ESCAPE = re.compile(rb"\\.?", re.DOTALL)
_ESCAPES = {rb"\\": b"\\", rb"\n": b"\n", rb"\r": b"\r"}

_NO_CLASS = "has a path without a folder, so without a class"
_HEX_DIGITS = np.frombuffer(b"0123456789abcdefABCDEF", dtype=np.uint8)

Indices = NDArray[np.int64]


def read_md5sum(
    file: IO[bytes], name: str, *, strip_prefix: str = "", is_top: bool = False
) -> Iterator[pa.Table]:
    """Yield rows of `digests`, in the order of the lines; sizes and times are null.

    Args:
        file: What md5sum printed.
        name: Its name in messages.
        strip_prefix: A folder to remove from the paths; it must contain every path.
        is_top: The class of a file is the first folder of its path, not the last.

    Raises:
        DataError: A line is malformed, its path is absolute, has no folder or leads upwards, or
            does not begin with *strip_prefix*.
    """
    prefix = strip_prefix.encode("utf-8", "surrogateescape").rstrip(b"/") + b"/"
    while prefix.startswith(b"./"):
        prefix = prefix[2:].lstrip(b"/")
    num_lines = 0
    for block, end_of_line in _blocks(file, name):
        parser = _Block(name, num_lines, block, end_of_line)
        rows = parser.rows(prefix if strip_prefix else b"", is_top=is_top)
        num_lines += rows.num_rows
        yield rows


def _blocks(file: IO[bytes], name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield blocks of complete lines, with their line terminator."""
    rest = b""
    end_of_line = _end_of_line(file)
    while piece := file.read(_BLOCK_BYTES):
        whole, end, rest = (rest + piece).rpartition(end_of_line)
        if end:
            yield whole + end, end_of_line
        if len(rest) > _BLOCK_BYTES:
            raise DataError(f"`{name}` is not a list of lines", hint=HINT)
    if rest:
        raise DataError(
            f"the last line of `{name}` has no end: the file was cut short",
            hint="run `md5sum` again to its end",
        )


def _end_of_line(file: IO[bytes]) -> bytes:
    """Return NUL if that is how the file ends, else a newline."""
    num_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(num_bytes - 1, 0))
    last = file.read(1)
    file.seek(0)
    return b"\0" if last == b"\0" else b"\n"


class _Block:
    """Lines of one file, and the arithmetic on where their parts begin and end.

    Args:
        name: Of the file.
        num_before: Lines before these.
        block: Whole lines.
        end_of_line: One byte.
    """

    def __init__(self, name: str, num_before: int, block: bytes, end_of_line: bytes) -> None:
        self._name = name
        self._num_before = num_before
        if end_of_line == b"\n" and b"\0" in block:
            index = block.count(b"\n", 0, block.index(b"\0"))
            self._refuse(index, "holds a NUL", block.split(b"\n")[index])
        if end_of_line == b"\n" and (block.startswith(b"\\") or b"\n\\" in block):
            block, end_of_line = self._without_escapes(block), b"\0"
        self._block = block
        self._bytes = np.frombuffer(block, dtype=np.uint8)
        self._stop_B = np.flatnonzero(self._bytes == end_of_line[0])
        self._start_B = np.append(0, self._stop_B[:-1] + 1)
        self._is_text = end_of_line == b"\n"

    def rows(self, prefix: bytes, *, is_top: bool) -> pa.Table:
        """Return the rows; *prefix* is removed from the paths."""
        digests = self._digests()
        path_B = self._paths(prefix)
        folder_B, slash_B = self._class_folders(path_B)
        if is_top:
            slashes = np.flatnonzero(self._bytes == ord("/"))
            folder_B, slash_B = path_B, slashes[np.searchsorted(slashes, path_B)]
        return pa.table(
            {
                "path": self._texts(path_B, self._stop_B),
                "wnid": self._texts(folder_B, slash_B),
                "digest": digests,
            }
        )

    def _without_escapes(self, block: bytes) -> bytes:
        """Return the unescaped lines, each ended by NUL."""
        lines = block[:-1].split(b"\n")
        for index, line in enumerate(lines):
            if line.startswith(b"\\"):
                lines[index] = _ESCAPE.sub(self._unescape(index, line), line[1:])
        return b"\0".join(lines) + b"\0"

    def _digests(self) -> pa.FixedSizeBinaryArray:
        self._refuse_where(self._stop_B - self._start_B <= _PATH_AT, "is not a line of md5sum")
        marks = self._fields(_NUM_HEX_DIGITS, 2)
        is_marked = (marks[:, 0] == ord(" ")) & (
            (marks[:, 1] == ord(" ")) | (marks[:, 1] == ord("*"))
        )
        self._refuse_where(~is_marked, "is not a line of md5sum")
        digits = self._fields(0, _NUM_HEX_DIGITS)
        try:
            whole = binascii.unhexlify(digits.data)
        except binascii.Error:
            num_digits = np.isin(digits, _HEX_DIGITS).sum(axis=1)
            self._refuse_where(num_digits < _NUM_HEX_DIGITS, "is not a line of md5sum")
            raise
        return as_digests(np.frombuffer(whole, dtype=np.uint8).reshape(-1, _NUM_HEX_DIGITS // 2))

    def _fields(self, offset: int, num_bytes: int) -> NDArray[np.uint8]:
        """Return so many bytes of each line, from *offset* on; a copy."""
        num_places = max(len(self._block) - num_bytes + 1, 0)
        item = np.dtype((np.void, num_bytes))
        from_each_byte = np.ndarray((num_places,), item, self._block, strides=(1,))
        fields: NDArray[np.uint8] = from_each_byte[self._start_B + offset].view(np.uint8)
        return fields.reshape(-1, num_bytes)

    def _paths(self, prefix: bytes) -> Indices:
        """Return where the paths begin, without *prefix*."""
        path_B = self._without_dots(self._start_B + _PATH_AT)
        text = prefix.decode("utf-8", "backslashreplace")
        why = f"does not begin with `{text}`"
        self._refuse_where(path_B == self._stop_B, _NO_CLASS)
        self._refuse_where(self._stop_B - path_B <= len(prefix), why)
        for offset, byte in enumerate(prefix):
            self._refuse_where(self._bytes[path_B + offset] != byte, why)
        path_B = self._without_dots(path_B + len(prefix))
        self._refuse_where(path_B == self._stop_B, _NO_CLASS)
        self._refuse_where(
            self._bytes[path_B] == ord("/"),
            "has an absolute path",
            hint="name the folder of the images with `--strip-prefix`",
        )
        if self._is_text:
            is_cr = self._bytes[self._stop_B - 1] == ord("\r")
            self._refuse_where(is_cr, "ends in a carriage return", hint="run `dos2unix` on it")
        return path_B

    def _without_dots(self, path_B: Indices) -> Indices:
        """Return where the paths begin after each `./` at their front."""
        last = len(self._bytes) - 1
        while True:
            following = np.minimum(path_B + 1, last)
            is_dot = (self._bytes[path_B] == ord(".")) & (self._bytes[following] == ord("/"))
            if not is_dot.any():
                return path_B
            path_B = path_B + 2 * is_dot

    def _class_folders(self, path_B: Indices) -> tuple[Indices, Indices]:
        """Return the starts and ends of the names of the files' folders."""
        slashes = np.append([-1, -1], np.flatnonzero(self._bytes == ord("/")))
        last = np.searchsorted(slashes, self._stop_B) - 1
        slash_B = slashes[last]
        self._refuse_where(slash_B < path_B, _NO_CLASS)
        folder_B = np.maximum(slashes[last - 1] + 1, path_B)
        is_empty = (folder_B == slash_B) | (slash_B + 1 == self._stop_B)
        self._refuse_where(is_empty, "has a path with an empty component")
        self._refuse_upwards(path_B)
        self._refuse_inside(b"//", path_B, "has a path with an empty component")
        self._refuse_inside(b"/./", path_B, "has a path with a part `.`")
        return folder_B, slash_B

    def _refuse_inside(self, text: bytes, path_B: Indices, why: str) -> None:
        """Refuse the first path that holds *text*."""
        place = self._block.find(text)
        while place >= 0:
            index = int(np.searchsorted(self._start_B, place, side="right")) - 1
            if place >= path_B[index]:
                self._refuse(index, why)
            place = self._block.find(text, place + 1)

    def _refuse_upwards(self, path_B: Indices) -> None:
        place = self._block.find(b"../")
        while place >= 0:
            index = int(np.searchsorted(self._start_B, place, side="right")) - 1
            is_whole_part = place == path_B[index] or self._block[place - 1] == ord("/")
            if place >= path_B[index] and is_whole_part:
                self._refuse(index, "has a path that leads upwards")
            place = self._block.find(b"../", place + 1)

    def _texts(self, start_B: Indices, stop_B: Indices) -> pa.StringArray:
        """Return the text from each start to its stop.

        The block itself serves as the data of an Arrow array in which what is wanted alternates
        with everything between; taking every other one is the only copy.
        """
        offsets = np.stack([start_B, stop_B], axis=1).astype(np.int32).ravel()
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self._block)]
        pieces = pa.BinaryArray.from_buffers(pa.binary(), len(offsets) - 1, buffers)
        wanted = pieces.take(pa.array(np.arange(0, len(pieces), 2)))
        try:
            return wanted.cast(pa.string())
        except pa.ArrowInvalid:
            is_bad = [not _is_utf8(text) for text in wanted.to_pylist()]
            self._refuse_where(np.array(is_bad), "has a path that is not UTF-8")
            raise

    def _unescape(self, index: int, line: bytes) -> Callable[[re.Match[bytes]], bytes]:
        def replacement(match: re.Match[bytes]) -> bytes:
            if match[0] not in _ESCAPES:
                self._refuse(index, "has a backslash before what md5sum does not escape", line)
            return _ESCAPES[match[0]]

        return replacement

    def _refuse_where(self, is_bad_B: NDArray[np.bool_], why: str, *, hint: str = HINT) -> None:
        """Refuse the first line that is marked, if any is."""
        if is_bad_B.any():
            self._refuse(int(is_bad_B.argmax()), why, hint=hint)

    def _refuse(
        self, index: int, why: str, line: bytes | None = None, *, hint: str = HINT
    ) -> NoReturn:
        if line is None:
            line = self._block[self._start_B[index] : self._stop_B[index]]
        shown = line[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
        raise DataError(
            f"`{self._name}`, line {self._num_before + index + 1:,} {why}: {shown!r}", hint=hint
        )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


_MD5_OF_NOTHING = bytes.fromhex("d41d8cd98f00b204e9800998ecf8427e")


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """Counts of a run of `import_md5sum`.

    Attributes:
        num_files: Lines, and rows of `digests.parquet`.
        num_empty: Lines with the MD5 of an empty file.
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
        strip_prefix: The folder that every path begins with, to be removed.
        root: The image root, for the commands that open images; the paths are relative to it.
        label_from: Which folder of an image is its class; None: the nearest one, if that can be
            a class.

    Raises:
        DataError: No such file, or a line that is malformed, does not begin with
            *strip_prefix* or has the path of another line; the message has its number.  Nothing is
            written.
        ImageTreeError: *root* is not a folder with class folders.
        LayoutError: The folders of the paths cannot be classes.
        UsageError: *manifests* is inside *root*.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    root_text = str(image_root(root)[0]) if root else ""
    refuse_inside(manifests, root_text)
    if not md5sum.is_file():
        raise DataError(f"no such file: `{md5sum}`", hint=HINT)
    options = {LABEL_OPTION: label_from} if label_from else {}
    header = ManifestHeader(algorithm="md5", root=root_text, options=options)
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
        for rows in prefetched(read(file)):
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
        """Return the repeated ones."""
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
        indices = np.flatnonzero(np.isin(_hashes_of(rows), hashes))
        suspects = rows.take(pa.array(indices))
        columns = suspects["path"].to_pylist(), suspects["digest"].to_pylist()
        for place, path, digest in zip(indices.tolist(), *columns, strict=True):
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


PLSC_PER_CLASS = 20
"""Source: PLSC, task/classification/vit/README.md, "ImageNet21K data preparation", step (3)."""

_ALL, _DUMMY_VAL = "image_all_list.txt", "image_dummy_val_list.txt"
_TRAIN, _VAL = "image_train_list.txt", "image_val_list.txt"
_BLANK = ord(" ")
_BLANKS_HINT = (
    "rename it; or pass `--allow-blanks`, if what reads the lists takes the last blank of a line "
    "for the one before the labels (PLSC's reader does not)"
)


def export_lists(
    manifests: Path, out: Path, *, per_class: int | None = None, allow_blanks: bool = False
) -> dict[str, int]:
    """Write the text lists of the split in *manifests*.

    Args:
        manifests: The folder that holds `images.parquet`, and `val.parquet` if there is a split.
        out: Where the lists go.
        per_class: Leave the split alone and take this many single-label images of each class for
            the dummy list, as PLSC does; default: the split, or PLSC's 20 if there is none.
        allow_blanks: Write names with blanks too; PLSC's reader cannot read them.

    Returns:
        The number of lines of each list written, by its name.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        DataError: A path has a blank, or a line break, in it.
        UsageError: *out* is inside the image root.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="export-lists"):
        images = open_manifest(manifests, IMAGES)
        refuse_inside(out, images.header.image_folder, option="--out")
        if per_class is not None or not (manifests / VAL.file_name).is_file():
            refuse_published(images, "`export-lists` without a split")
            in_val = _first_single_labels(images, per_class or PLSC_PER_CLASS)
            lists = {_ALL: (images, None), _DUMMY_VAL: (images, in_val)}
        else:
            val, train = open_manifest(manifests, VAL), open_manifest(manifests, TRAIN)
            is_holdout = val.header.options["split"] == "holdout"
            names = (_TRAIN, _VAL) if is_holdout else (_ALL, _DUMMY_VAL)
            lists = {names[0]: (train, None), names[1]: (val, None)}
        out.mkdir(parents=True, exist_ok=True)
        return {
            name: _write(out / name, manifest, is_in, allow_blanks=allow_blanks)
            for name, (manifest, is_in) in lists.items()
        }


def _first_single_labels(images: Manifest, per_class: int) -> NDArray[np.bool_]:
    singles = single_labels(images)
    num_classes = len(images.classes())
    chosen = choose(singles.label_R, None, num_classes=num_classes, per_class=per_class)
    return singles.marked(chosen)


def _write(
    path: Path, manifest: Manifest, is_in: NDArray[np.bool_] | None, *, allow_blanks: bool
) -> int:
    """Write a line for each image that *is_in* marks (default: all); return how many."""
    num_lines = 0
    with atomic_file(path) as file:
        for rows in prefetched(_marked(manifest, is_in)):
            _refuse_blanks(rows["path"].combine_chunks(), allow_blanks=allow_blanks)
            file.write(plsc_lines(rows))
            num_lines += rows.num_rows
    return num_lines


def _marked(manifest: Manifest, is_in: NDArray[np.bool_] | None) -> Iterator[pa.Table]:
    row = 0
    for rows in manifest.batches(["path", "label_ids"]):
        stop = row + rows.num_rows
        yield rows if is_in is None else rows.filter(pa.array(is_in[row:stop]))
        row = stop


def plsc_lines(rows: pa.Table) -> memoryview:
    r"""Return ``path 3,17\n`` for each of *rows*, one after the other."""
    labels = rows["label_ids"].combine_chunks()
    starts = pc.subtract(labels.offsets, labels.offsets[0])
    texts = pa.ListArray.from_arrays(starts, labels.flatten().cast(pa.string()))
    ends = pc.binary_join_element_wise(pc.binary_join(texts, ","), "", "\n")
    lines = pc.binary_join_element_wise(rows["path"].combine_chunks(), ends, " ")
    num_bytes = pc.sum(pc.binary_length(lines)).as_py() or 0
    return memoryview(lines.buffers()[2] or b"")[:num_bytes]


def _refuse_blanks(paths: pa.StringArray, *, allow_blanks: bool) -> None:
    """Refuse line breaks, and blanks unless they are allowed."""
    text = np.frombuffer(paths.buffers()[2] or b"", dtype=np.uint8)
    if not (text <= _BLANK).any():
        return
    _refuse(paths, r"[\n\r]", "a line break", hint="rename it")
    if not allow_blanks:
        _refuse(paths, r"[\x00-\x20]", "a blank", hint=_BLANKS_HINT)


def _refuse(paths: pa.StringArray, pattern: str, what: str, *, hint: str) -> None:
    malformed = paths.filter(pc.match_substring_regex(paths, pattern))
    if len(malformed):
        raise DataError(
            f"{malformed[0].as_py()!r} has {what} in its name, which these lists cannot hold",
            hint=hint,
        )
