"""Pairs of pictures -> contact sheets: the pictures of a pair side by side, with a caption."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vit21k.atomic import atomic_file
from vit21k.data.decode import decode_rgb
from vit21k.data.unread import why_unread
from vit21k.errors import ImageError
from vit21k.near.pair_pictures import PairPictures
from vit21k.one_line import one_line

PAIRS_PER_SHEET = 24

_COLUMNS = 4
_SIDE = 150  # pixels of a picture
_GAP = 8
_CAPTION_HEIGHT = 34
_CELL = (2 * _SIDE + 3 * _GAP, _SIDE + _CAPTION_HEIGHT + 2 * _GAP)
_TEXT_SIZE = 11
_BLANK = (120, 120, 120)


class SheetPair(NamedTuple):
    """A pair to show.

    Attributes:
        one, other: Give the content of the files.
        caption: Two lines.
    """

    one: Callable[[], bytes]
    other: Callable[[], bytes]
    caption: tuple[str, str]


def sheet_pairs(pictures: PairPictures) -> list[SheetPair]:
    """Return the pairs with captions."""
    return [
        SheetPair(
            partial(pictures.one, index),
            partial(pictures.other, index),
            (
                f"{row['level']}  distance {row['distance']}  similarity {row['similarity']:.2f}",
                f"{row['path']}  |  {row['other_path']}",
            ),
        )
        for index, row in enumerate(pictures.rows)
    ]


def write_sheets(
    pairs: Sequence[SheetPair],
    folder: Path,
    *,
    on_sheet: Callable[[], None] = lambda: None,
    on_unread: Callable[[str], None] = lambda _why: None,
) -> list[Path]:
    """Write `001.png`, `002.png` ... into *folder*, with `PAIRS_PER_SHEET` pairs each.

    A picture that cannot be decoded is shown as a grey square; so is one that could not be read,
    and *on_unread* is called with the reason.
    """
    sheets = []
    for number, some in enumerate(_batched(pairs), start=1):
        path = folder / f"{number:03d}.png"
        with atomic_file(path) as file:
            _sheet(some, on_unread).save(file, "PNG")
        sheets.append(path)
        on_sheet()
    return sheets


def _batched(pairs: Sequence[SheetPair]) -> Iterator[Sequence[SheetPair]]:
    for start in range(0, len(pairs), PAIRS_PER_SHEET):
        yield pairs[start : start + PAIRS_PER_SHEET]


def _sheet(pairs: Sequence[SheetPair], on_unread: Callable[[str], None]) -> Image.Image:
    num_rows = -(-len(pairs) // _COLUMNS)
    width, height = _CELL
    sheet = Image.new("RGB", (width * min(_COLUMNS, len(pairs)), height * num_rows), "white")
    for index, pair in enumerate(pairs):
        row, column = divmod(index, _COLUMNS)
        _draw(sheet, pair, (column * width, row * height), on_unread)
    return sheet


def _draw(
    sheet: Image.Image,
    pair: SheetPair,
    corner: tuple[int, int],
    on_unread: Callable[[str], None],
) -> None:
    left, top = corner[0] + _GAP, corner[1] + _GAP
    for read in (pair.one, pair.other):
        sheet.paste(_small(read, on_unread), (left, top))
        left += _SIDE + _GAP
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_SIZE)
    for number, line in enumerate(pair.caption):
        place = (corner[0] + _GAP, top + _SIDE + 3 + number * (_TEXT_SIZE + 3))
        draw.text(place, _fitting(line, draw, font), fill="black", font=font)


def _fitting(line: str, draw: ImageDraw.ImageDraw, font: "Font") -> str:
    """Return the line, with its end cut off if it is too long for a cell."""
    line = one_line(line)
    while draw.textlength(line, font=font) > _CELL[0] - _GAP:
        line = line[:-2] + "…"
    return line


def _small(read: Callable[[], bytes], on_unread: Callable[[str], None]) -> Image.Image:
    """Return the picture, whole, in the middle of a square."""
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    blank = Image.new("RGB", (_SIDE, _SIDE), _BLANK)
    try:
        content = read()
    except (ImageError, OSError) as error:
        on_unread(why_unread(error))
        return blank
    try:
        image = decode_rgb(content)
    except ImageError:
        return blank
    scale = _SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square.paste(image.resize(size), ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return square


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
