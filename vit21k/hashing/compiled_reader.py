"""Call scan.c of the compiled extension: a chunk of files at a time.

The interpreter's lock is not held meanwhile, so threads really read side by side.
"""

import ctypes
import threading
from functools import cache

from vit21k._native import NoExtensionError, extension
from vit21k.hashing.chunk_files import ChunkFiles
from vit21k.hashing.file_digest import BUFFER_BYTES, thread_buffer
from vit21k.hashing.file_rows import ROW

_ALGORITHM = "xxh3_128"


class CompiledReader:
    """The functions of scan.c; any number of threads may share them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Make an instance.

        Raises:
            NoExtensionError: The extension was built from other sources than these.
        """
        self._buffers = threading.local()
        self._read = library.read_files
        self._check = library.check_files
        self._ask = library.ask_for_files
        self._list = library.list_files
        place, number = ctypes.c_void_p, ctypes.c_int
        names = (number, ctypes.c_char_p, ctypes.c_int64, number, number)
        self._read.argtypes = (*names, place, ctypes.c_int64, place, place)
        self._check.argtypes = (*names, place, place)
        self._ask.argtypes = (*names, place)
        self._list.argtypes = (ctypes.c_char_p, place, ctypes.c_int64)
        self._list.restype = ctypes.c_int64
        self._read.restype = self._check.restype = self._ask.restype = None
        if library.row_bytes() != ROW.itemsize:
            raise NoExtensionError("the compiled extension is of another version of vit21k")

    def list_files(self, folder: bytes) -> list[bytes] | None:
        """Return the names in the folder of this path, in any order.

        None where anything is odd: it holds something else than regular files, or what may be an
        archive, or very many files, or it cannot be read.
        """
        buffer = self._buffer()
        num_bytes = self._list(folder, buffer, BUFFER_BYTES)
        return ctypes.string_at(buffer, num_bytes - 1).split(b"\0") if num_bytes > 0 else None

    def read(self, files: ChunkFiles, open_flags: int, *, only_ends: bool) -> None:
        """Read those of *files* that are to do and plain; they are done then.

        Args:
            files: Of one folder.
            open_flags: What to open them with.
            only_ends: Read both ends only, of files that are larger than both.
        """
        args = files.folder, files.packed_names, len(files), open_flags, only_ends
        self._read(
            *args, self._buffer(), BUFFER_BYTES, files.rows.ctypes.data, files.states.ctypes.data
        )

    def ask_for(self, files: ChunkFiles, open_flags: int, *, only_ends: bool) -> None:
        """Have the system fetch those of *files* that are to do; do not wait for them.

        Args:
            files: Of one folder.
            open_flags: What to open them with.
            only_ends: Both ends only.
        """
        args = files.folder, files.packed_names, len(files), open_flags, only_ends
        self._ask(*args, files.states.ctypes.data)

    def check(self, files: ChunkFiles, open_flags: int, *, by_all: bool) -> None:
        """Note those of *files* as done that are to do, and are on the disk as their rows say.

        Args:
            files: Of one folder.
            open_flags: Whether to follow links.
            by_all: Compare inode and status-change time, too.
        """
        args = files.folder, files.packed_names, len(files), open_flags, by_all
        self._check(*args, files.rows.ctypes.data, files.states.ctypes.data)

    def _buffer(self) -> int:
        """Return where this thread's buffer is."""
        try:
            place: int = self._buffers.place
        except AttributeError:
            self._buffers.view = (ctypes.c_char * BUFFER_BYTES).from_buffer(thread_buffer())
            place = self._buffers.place = ctypes.addressof(self._buffers.view)
        return place


@cache
def compiled_reader() -> tuple[CompiledReader | None, str | None]:
    """Return the compiled scanner; or None, and why there is none."""
    try:
        return CompiledReader(extension()), None
    except NoExtensionError as error:
        return None, error.message


def compiled_reader_for(algorithm: str) -> CompiledReader | None:
    """Return the compiled way to make digests of the kind *algorithm*, if there is one."""
    return compiled_reader()[0] if algorithm == _ALGORITHM else None
