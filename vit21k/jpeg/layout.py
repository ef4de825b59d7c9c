"""What recoding needs to know of a scan: shared by the compiled and the plain way."""

from typing import NamedTuple

NUM_SLOTS = 4
"""Huffman tables of a kind (DC, AC) that a JPEG may have."""


class Table(NamedTuple):
    """A Huffman table as DHT stores it.

    Attributes:
        counts: 17 bytes: how many codes of each length there are; the first is not used.
        values: Their values, by length.
    """

    counts: bytes
    values: bytes


class Layout(NamedTuple):
    """The MCUs of a scan.

    Attributes:
        mcus_x: How many a row has.
        mcus_y: How many rows there are.
        restart_in: MCUs between restart markers as it is; 0: none.
        restart_out: ... as it is to be.
        blocks: Component of each block of an MCU.
        dc_slot: Which DC table each component uses.
        ac_slot: Which AC table.
    """

    mcus_x: int
    mcus_y: int
    restart_in: int
    restart_out: int
    blocks: tuple[int, ...]
    dc_slot: tuple[int, ...]
    ac_slot: tuple[int, ...]
