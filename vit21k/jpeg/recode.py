"""A JPEG -> the same coefficients with restart markers, losslessly: a tile JPEG.

Every coefficient stays, and so does every pixel of every decoder; what changes is how they are
stored: Huffman tables of their own, and a restart marker every few MCUs (see `tiles.py`).
"""

from collections.abc import Callable

from vit21k.jpeg.headers import DHT, DRI, EOI, Jpeg, NotTileableError, parse_jpeg
from vit21k.jpeg.layout import NUM_SLOTS, Layout, Table
from vit21k.jpeg.tiles import decides_pixels

Recode = Callable[[memoryview, Layout, list[Table]], tuple[bytes, list[Table]]]

TILE_MCUS = 8
"""Width of a tile that is aimed at.  With half of it the file grows by a hundredth."""

_MIN_TILE, _MAX_TILE = 3, 16
_NO_TABLE = Table(bytes(17), b"")


def tile_jpeg(content: bytes, recode: Recode, *, keep_metadata: bool = False) -> bytes:
    """Return *content* as a tile JPEG.

    Args:
        content: A JPEG file; what follows its end marker is left out.
        recode: What `compiled_recoder` returned.
        keep_metadata: Keep EXIF, colour profiles and comments, which decide no pixel.

    Raises:
        NotTileableError: It is progressive, arithmetic, of several scans, damaged, or no JPEG.
    """
    jpeg = parse_jpeg(content)
    mcus_x, mcus_y = jpeg.frame.mcus
    interval = tile_width(mcus_x)
    tables = _tables(content, jpeg)
    layout = _layout(content, jpeg, interval)
    end = content.rfind(bytes([0xFF, EOI]), jpeg.scan_start)
    if end < 0 or mcus_x * mcus_y > 64 * (len(content) - jpeg.scan_start):
        raise NotTileableError("damaged data")
    data, new_tables = recode(memoryview(content)[jpeg.scan_start : end + 2], layout, tables)
    *heads, sos = jpeg.segments
    kept = [
        content[segment.start : segment.end]
        for segment in heads
        if segment.marker not in (DHT, DRI) and (keep_metadata or decides_pixels(segment))
    ]
    new = [_stored(new_tables), bytes([0xFF, DRI, 0, 4]) + interval.to_bytes(2)]
    scan = [content[sos.start : sos.end], data, bytes([0xFF, EOI])]
    return b"".join([content[:2], *kept, *new, *scan])


def tile_width(mcus: int) -> int:
    """Return how many MCUs a tile is to have: a divisor of *mcus*, those of a row.

    The one nearest to `TILE_MCUS`; a whole row where none is near.
    """
    divisors = [k for k in range(_MIN_TILE, min(_MAX_TILE, mcus) + 1) if mcus % k == 0]
    return min(divisors, key=lambda k: max(k / TILE_MCUS, TILE_MCUS / k), default=mcus)


def _tables(content: bytes, jpeg: Jpeg) -> list[Table]:
    """Return the tables in force: four for DC, then four for AC."""
    tables = [_NO_TABLE] * (2 * NUM_SLOTS)
    for segment in jpeg.segments:
        if segment.marker != DHT:
            continue
        position = segment.start + 4
        while position < segment.end:
            kind, slot = content[position] >> 4, content[position] & 15
            counts = b"\0" + content[position + 1 : position + 17]
            end = position + 17 + sum(counts)
            if kind > 1 or slot >= NUM_SLOTS or end > segment.end:
                raise NotTileableError("damaged headers")
            tables[kind * NUM_SLOTS + slot] = Table(counts, content[position + 17 : end])
            position = end
    return tables


def _layout(content: bytes, jpeg: Jpeg, interval: int) -> Layout:
    components = jpeg.frame.components
    sos = jpeg.segments[-1]
    body = content[sos.start + 5 : sos.end]
    if len(body) != 2 * len(components) + 3 or body[-3:] != b"\0\x3f\0":
        raise NotTileableError("an unusual kind of JPEG")
    if any(body[2 * i] != each.identifier for i, each in enumerate(components)):
        raise NotTileableError("an unusual kind of JPEG")
    slots = body[1 : 2 * len(components) : 2]
    if any(slot >> 4 >= NUM_SLOTS or slot & 15 >= NUM_SLOTS for slot in slots):
        raise NotTileableError("damaged headers")
    counts = [each.h * each.v for each in components] if len(components) > 1 else [1]
    return Layout(
        *jpeg.frame.mcus,
        restart_in=jpeg.restart_interval,
        restart_out=interval,
        blocks=tuple(i for i, count in enumerate(counts) for _ in range(count)),
        dc_slot=tuple(slot >> 4 for slot in slots),
        ac_slot=tuple(slot & 15 for slot in slots),
    )


def _stored(tables: list[Table]) -> bytes:
    """Return DHT with those that are used."""
    body = b"".join(
        bytes([index // NUM_SLOTS << 4 | index % NUM_SLOTS]) + table.counts[1:] + table.values
        for index, table in enumerate(tables)
        if table.values
    )
    return bytes([0xFF, DHT]) + (len(body) + 2).to_bytes(2) + body
