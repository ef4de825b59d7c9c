r"""What `md5sum` printed -> rows of `digests`.

GNU md5sum prints ``<32 hex digits><space><space or *><path><newline>``.  A path with a backslash, a
newline or a carriage return has those written as ``\\``, ``\n``, ``\r``, and its line begins with a
backslash.  With ``-z`` lines end in NUL and nothing is escaped.

Any line that is not of this form is refused by its number: whoever loses a line trains on a data
set that nobody described.  `./` at the front of a path, as after `find . -type f`, is taken off:
paths are those that a walk of the image root gives.

Performance: a block of some 50,000 lines is taken apart with array operations, so that the time
goes into writing the manifest.  Only blocks with escapes pass through Python line by line.

Legend: B lines in a block.
"""

import binascii
import os
import re
from collections.abc import Callable, Iterator
from typing import IO, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import DataError
from vit21k.prep.keys import as_digests

HINT = "it must be all of what `md5sum FILE...`, or `md5sum -z FILE...`, has printed"

_BLOCK_BYTES = 1 << 22
_NUM_HEX_DIGITS = 32
_PATH_AT = 34
_SHOWN_BYTES = 120
_ESCAPE = re.compile(rb"\\.?", re.DOTALL)
_ESCAPES = {rb"\\": b"\\", rb"\n": b"\n", rb"\r": b"\r"}

_NO_CLASS = "has a path without a folder, so without a class"
_HEX_DIGITS = np.frombuffer(b"0123456789abcdefABCDEF", dtype=np.uint8)

Places = NDArray[np.int64]


def read_md5sum(
    file: IO[bytes], name: str, *, strip_prefix: str = "", is_top: bool = False
) -> Iterator[pa.Table]:
    """Yield rows of `digests`, in the order of the lines; sizes and times are null.

    Args:
        file: What md5sum printed.
        name: What to call it in an error.
        strip_prefix: A folder, taken off the paths; every path must lie in it.
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
    """Yield pieces of whole lines, each with what its lines end in."""
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
        """Return the rows; *prefix* is taken off the paths."""
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
        """Return the lines with what is escaped put back, each ended by NUL."""
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

    def _paths(self, prefix: bytes) -> Places:
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

    def _without_dots(self, path_B: Places) -> Places:
        """Return where the paths begin after each `./` at their front."""
        last = len(self._bytes) - 1
        while True:
            following = np.minimum(path_B + 1, last)
            is_dot = (self._bytes[path_B] == ord(".")) & (self._bytes[following] == ord("/"))
            if not is_dot.any():
                return path_B
            path_B = path_B + 2 * is_dot

    def _class_folders(self, path_B: Places) -> tuple[Places, Places]:
        """Return where the names of the folders that the files lie in begin and end."""
        slashes = np.append([-1, -1], np.flatnonzero(self._bytes == ord("/")))
        last = np.searchsorted(slashes, self._stop_B) - 1
        slash_B = slashes[last]
        self._refuse_where(slash_B < path_B, _NO_CLASS)
        folder_B = np.maximum(slashes[last - 1] + 1, path_B)
        is_empty = (folder_B == slash_B) | (slash_B + 1 == self._stop_B)
        self._refuse_where(is_empty, "has a path with an empty part")
        self._refuse_upwards(path_B)
        self._refuse_inside(b"//", path_B, "has a path with an empty part")
        self._refuse_inside(b"/./", path_B, "has a path with a part `.`")
        return folder_B, slash_B

    def _refuse_inside(self, text: bytes, path_B: Places, why: str) -> None:
        """Refuse the first path that holds *text*."""
        place = self._block.find(text)
        while place >= 0:
            index = int(np.searchsorted(self._start_B, place, side="right")) - 1
            if place >= path_B[index]:
                self._refuse(index, why)
            place = self._block.find(text, place + 1)

    def _refuse_upwards(self, path_B: Places) -> None:
        place = self._block.find(b"../")
        while place >= 0:
            index = int(np.searchsorted(self._start_B, place, side="right")) - 1
            is_whole_part = place == path_B[index] or self._block[place - 1] == ord("/")
            if place >= path_B[index] and is_whole_part:
                self._refuse(index, "has a path that leads upwards")
            place = self._block.find(b"../", place + 1)

    def _texts(self, start_B: Places, stop_B: Places) -> pa.StringArray:
        """Return the text from each start to its stop.

        The block itself serves as the data of an Arrow array in which what is wanted alternates
        with what lies between; taking every other one is the only copy.
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
