"""What `c/recode.c` does, in Python: the same bytes, more than a hundred times slower.

See there for what each step is; names are the same.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

from vit21k.jpeg.headers import NotTileableError
from vit21k.jpeg.layout import NUM_SLOTS, Layout, Table

_MAX_DC_BITS, _MAX_AC_BITS = 11, 10
_LAST = 63
_ZERO_RUN = 15
_DUMMY = 256  # a value that is no value: its code is the one of all ones

_Symbol = tuple[int, int, int]
"""Slot (0 to 3 for DC, 4 to 7 for AC), value, extra bits."""


def recode(data: memoryview, layout: Layout, tables: list[Table]) -> tuple[bytes, list[Table]]:
    """Return the recoded data and the new tables, as `vit21k.jpeg.recode.recode` does."""
    symbols = list(_read_all(_Reader(data), layout, [_codes_in(table) for table in tables]))
    counts = [Counter[int]() for _ in range(2 * NUM_SLOTS)]
    for slot, value, _ in symbols:
        counts[slot][value] += 1
    new = [best_table(count) if count else Table(bytes(17), b"") for count in counts]
    return _write_all(symbols, layout, new), new


def _damaged() -> NoReturn:
    raise NotTileableError("damaged data")


def _codes_in(table: Table) -> dict[int, int]:
    """Return the value of each code; a code has a 1 put before it, so that its length counts."""
    codes: dict[int, int] = {}
    code = index = 0
    for length in range(1, 17):
        count = table.counts[length]
        if index + count > _DUMMY or code + count > 1 << length:
            _damaged()
        for _ in range(count):
            codes[1 << length | code] = table.values[index] if index < len(table.values) else 0
            code, index = code + 1, index + 1
        code <<= 1
    return codes


class _Reader:
    """Takes bits; `position` is that of the next byte."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0
        self._bits = self._count = 0

    def _fill(self) -> None:
        data, position = self._data, self._position
        while self._count <= 48 and position < len(data):  # noqa: PLR2004
            byte = data[position]
            if byte == 0xFF:  # noqa: PLR2004
                if position + 1 >= len(data) or data[position + 1]:
                    break
                position += 1
            position += 1
            self._bits = self._bits << 8 | byte
            self._count += 8
        self._position = position

    def take(self, count: int) -> int:
        """Return the next *count* bits as a number."""
        if self._count < count:
            self._fill()
            if self._count < count:
                _damaged()
        self._count -= count
        value = self._bits >> self._count
        self._bits &= (1 << self._count) - 1
        return value

    def symbol(self, codes: dict[int, int]) -> int:
        """Return the value of the next code."""
        code = 1
        for _ in range(16):
            code = code << 1 | self.take(1)
            if code in codes:
                return codes[code]
        _damaged()

    def pass_marker(self) -> int:
        """Return the marker that must come now, and go on behind it."""
        self._fill()
        at = self._position
        if self._count >= 8 or at + 1 >= len(self._data) or self._data[at] != 0xFF:  # noqa: PLR2004
            _damaged()
        self._position, self._bits, self._count = at + 2, 0, 0
        return self._data[at + 1]


def _read_all(reader: _Reader, layout: Layout, codes: list[dict[int, int]]) -> Iterator[_Symbol]:
    before, after = [0] * NUM_SLOTS, [0] * NUM_SLOTS
    for mcu in range(layout.mcus_x * layout.mcus_y):
        if mcu and layout.restart_in and mcu % layout.restart_in == 0:
            if reader.pass_marker() != 0xD0 + (mcu // layout.restart_in - 1 & 7):
                _damaged()
            before = [0] * NUM_SLOTS
        if mcu % layout.restart_out == 0:
            after = [0] * NUM_SLOTS
        for component in layout.blocks:
            slot = layout.dc_slot[component]
            dc = before[component] + _take_dc(reader, codes[slot])
            if abs(dc) >= 1 << _MAX_DC_BITS:
                _damaged()
            yield slot, *_magnitude(dc - after[component])
            before[component] = after[component] = dc
            slot = layout.ac_slot[component] + NUM_SLOTS
            yield from _copy_ac(reader, codes[slot], slot)
    reader.pass_marker()


def _take_dc(reader: _Reader, codes: dict[int, int]) -> int:
    count = reader.symbol(codes)
    if count > _MAX_DC_BITS:
        _damaged()
    extra = reader.take(count) if count else 0
    return extra - (1 << count) + 1 if count and extra < 1 << (count - 1) else extra


def _magnitude(difference: int) -> tuple[int, int]:
    count = abs(difference).bit_length()
    if count > _MAX_DC_BITS:
        _damaged()
    return count, difference + (1 << count) - 1 if difference < 0 else difference


def _copy_ac(reader: _Reader, codes: dict[int, int], slot: int) -> Iterator[_Symbol]:
    place = 1
    while place <= _LAST:
        value = reader.symbol(codes)
        run, count = value >> 4, value & 15
        if count or run == _ZERO_RUN:
            place += run
            if place > _LAST or count > _MAX_AC_BITS:
                _damaged()
        elif run:
            _damaged()
        yield slot, value, reader.take(count) if count else 0
        if not value:
            return
        place += 1


def best_table(counts: Counter[int]) -> Table:
    """Return the Huffman table that stores values of these frequencies in the fewest bits."""
    lengths = _code_lengths({**counts, _DUMMY: 1})
    num_of = Counter(lengths.values())
    for length in range(63, 16, -1):
        while num_of[length]:
            shorter = next(rest for rest in range(length - 2, 0, -1) if num_of[rest])
            num_of[length] -= 2
            num_of[length - 1] += 1
            num_of[shorter + 1] += 2
            num_of[shorter] -= 1
    num_of[max(length for length in num_of if num_of[length])] -= 1  # the one of all ones
    values = sorted((value for value in counts), key=lambda value: (lengths[value], value))
    return Table(bytes(num_of[length] for length in range(17)), bytes(values))


def _code_lengths(frequency: dict[int, int]) -> dict[int, int]:
    groups = {value: [value] for value in frequency}
    lengths = dict.fromkeys(frequency, 0)
    while len(frequency) > 1:
        first = min(frequency, key=lambda value: (frequency[value], -value))
        others = (value for value in frequency if value != first)
        second = min(others, key=lambda value: (frequency[value], -value))
        frequency[first] += frequency.pop(second)
        groups[first] += groups.pop(second)
        for value in groups[first]:
            lengths[value] += 1
    return lengths


def _write_all(symbols: list[_Symbol], layout: Layout, tables: list[Table]) -> bytes:
    codes = [_codes_out(table) for table in tables]
    out = bytearray()
    bits = count = block = 0
    per_restart = layout.restart_out * len(layout.blocks)
    for slot, value, extra in symbols:
        if slot < NUM_SLOTS:
            if block and block % per_restart == 0:
                _flush(out, bits, count)
                out += bytes([0xFF, 0xD0 + (block // per_restart - 1 & 7)])
                bits = count = 0
            block += 1
        code, length = codes[slot][value]
        extra_bits = value if slot < NUM_SLOTS else value & 15
        bits = (bits << length | code) << extra_bits | extra
        count += length + extra_bits
        while count >= 8:  # noqa: PLR2004
            count -= 8
            byte = bits >> count
            out += b"\xff\0" if byte == 0xFF else bytes([byte])  # noqa: PLR2004
            bits &= (1 << count) - 1
    _flush(out, bits, count)
    return bytes(out)


def _flush(out: bytearray, bits: int, count: int) -> None:
    """Write the bits of the last byte, filled with ones."""
    if count:
        byte = bits << (8 - count) | (1 << (8 - count)) - 1
        out += b"\xff\0" if byte == 0xFF else bytes([byte])  # noqa: PLR2004


def _codes_out(table: Table) -> dict[int, tuple[int, int]]:
    """Return code and length of each value."""
    return {
        value: (code ^ 1 << code.bit_length() - 1, code.bit_length() - 1)
        for code, value in _codes_in(table).items()
    }
