"""Call recode.c of the compiled extension."""

import ctypes
from functools import cache

from vit21k._native import NoExtensionError, extension
from vit21k.jpeg.headers import NotTileableError
from vit21k.jpeg.layout import NUM_SLOTS, Layout, Table

_MAX_BLOCKS = 10
_NO_MEMORY, _NO_ROOM = -3, -4


class _Layout(ctypes.Structure):
    """`Layout` of recode.c."""

    _fields_ = (
        ("mcus_x", ctypes.c_int32),
        ("mcus_y", ctypes.c_int32),
        ("restart_in", ctypes.c_int32),
        ("restart_out", ctypes.c_int32),
        ("num_blocks", ctypes.c_int32),
        ("component", ctypes.c_int32 * _MAX_BLOCKS),
        ("dc_slot", ctypes.c_int32 * NUM_SLOTS),
        ("ac_slot", ctypes.c_int32 * NUM_SLOTS),
    )


_TABLE_BYTES = 17 + 256
_Tables = ctypes.c_uint8 * (_TABLE_BYTES * 2 * NUM_SLOTS)


class CompiledRecoder:
    """`recode` of recode.c; for any number of threads, which do not wait for one another."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._recode = library.recode
        self._recode.restype = ctypes.c_long
        self._recode.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.POINTER(_Layout),
            ctypes.POINTER(_Tables),
            ctypes.c_void_p,
            ctypes.c_size_t,
        ]

    def __call__(
        self, data: memoryview, layout: Layout, tables: list[Table]
    ) -> tuple[bytes, list[Table]]:
        """Return the recoded data and the new tables, as `vit21k.jpeg.recode.recode` does."""
        source = bytes(data)
        packed = _Tables.from_buffer(bytearray(b"".join(map(_packed, tables))))
        num_restarts = layout.mcus_x * layout.mcus_y // layout.restart_out
        capacity = 2 * len(source) + 8 * num_restarts + 1024
        out = ctypes.create_string_buffer(capacity)
        num_bytes = self._recode(
            source, len(source), ctypes.byref(_as_c(layout)), ctypes.byref(packed), out, capacity
        )
        if num_bytes == _NO_MEMORY:
            raise MemoryError
        if num_bytes == _NO_ROOM:
            raise NotTileableError("it would be twice as large")
        if num_bytes < 0:
            raise NotTileableError("damaged data")
        return ctypes.string_at(out, num_bytes), _unpacked(bytes(packed))


def _as_c(layout: Layout) -> _Layout:
    made = _Layout(*layout[:4], len(layout.blocks))
    made.component[: len(layout.blocks)] = layout.blocks
    made.dc_slot[: len(layout.dc_slot)] = layout.dc_slot
    made.ac_slot[: len(layout.ac_slot)] = layout.ac_slot
    return made


def _packed(table: Table) -> bytes:
    return table.counts + table.values[:256].ljust(256, b"\0")


def _unpacked(packed: bytes) -> list[Table]:
    tables = []
    for start in range(0, len(packed), _TABLE_BYTES):
        counts = packed[start : start + 17]
        tables.append(Table(counts, packed[start + 17 : start + 17 + sum(counts)]))
    return tables


@cache
def compiled_recoder() -> CompiledRecoder:
    """Return the compiled recoder.

    Raises:
        NoExtensionError: There is no compiled extension.
    """
    try:
        return CompiledRecoder(extension())
    except NoExtensionError as error:
        hint = f"{error.hint}; or make a pack with `--raw --short-side N`, which needs none of it"
        raise NoExtensionError(error.message, hint=hint) from error
