"""Contact sheets of pairs of images."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from vit21k.atomic import atomic_file
from vit21k.data.dataset import ImageDataset
from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError, one_line
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES
from vit21k.sources.listing import read_path
from vit21k.sources.read import ImageReader, Root, why_unread


class PairImages:
    """The images of the first pairs of a manifest.

    Attributes:
        rows: The rows of the manifest.
    """

    def __init__(self, manifest: Manifest, *, root: Root | None, max_pairs: int) -> None:
        """Open the first *max_pairs* pairs of *manifest*.

        Raises:
            ManifestError: Its `images.parquet` is missing, stale or damaged.
            ImageTreeError: The image root does not exist.
        """
        table = manifest.read().slice(0, max_pairs)
        self.rows: list[dict[str, Any]] = table.to_pylist()
        self._images = _images_of(manifest.path.parent, root)
        self._one = _rows_of(table["path"], manifest.path.parent)
        options = manifest.header.options
        self._other_root: str | None = options.get("against")
        self._other_reader = ImageReader(self._other_root or "", unpacks=True)
        self._others: ImageDataset | None = None
        others_at = manifest.path.parent if self._other_root is None else None
        others = options.get("against_manifests")
        if others and (Path(others) / IMAGES.file_name).is_file():
            others_at = Path(others)
        if others_at:
            same = others_at == manifest.path.parent
            self._others = self._images if same else _images_of(others_at, self._other_root)
            self._other = _rows_of(table["other_path"], others_at)

    def __len__(self) -> int:
        return len(self.rows)

    def label_ids(self, index: int) -> list[int]:
        """Return the class indices of a pair, of all its images with labels."""
        within = self._other_root is None
        others = self._images.label_ids(self._other[index]) if within else []
        return sorted({*self._images.label_ids(self._one[index]), *others})

    def one(self, index: int) -> bytes:
        """Return the content of the first image of a pair.

        Raises:
            ImageError: The file does not exist.
            OSError: It cannot be read.
        """
        return self._images.read_bytes(self._one[index])

    def other(self, index: int) -> bytes:
        """Return the content of the second image; as `one`."""
        if self._others is not None:
            return self._others.read_bytes(self._other[index])
        return read_path(self._other_reader, self.rows[index]["other_path"])


def _images_of(manifests: Path, root: Root | None) -> ImageDataset:
    return ImageDataset.from_manifest(open_manifest(manifests, IMAGES), root)


def _rows_of(wanted: pa.ChunkedArray, manifests: Path) -> list[int]:
    """Return the rows of the *wanted* paths in the `images.parquet` of *manifests*."""
    paths = open_manifest(manifests, IMAGES).read(["path"])["path"].combine_chunks()
    rows: list[int] = pc.index_in(wanted, paths).to_pylist()
    return rows


PAIRS_PER_SHEET = 24

_COLUMNS = 4
_SIDE = 150  # pixels of an image
_GAP = 8
_CAPTION_HEIGHT = 34
_CELL = (2 * _SIDE + 3 * _GAP, _SIDE + _CAPTION_HEIGHT + 2 * _GAP)
_TEXT_SIZE = 11
_BLANK = (120, 120, 120)


class SheetPair(NamedTuple):
    """A pair to show.

    Attributes:
        one, other: Return the content of the files.
        caption: Two lines.
    """

    one: Callable[[], bytes]
    other: Callable[[], bytes]
    caption: tuple[str, str]


def sheet_pairs(images: PairImages) -> list[SheetPair]:
    """Return the pairs with captions."""
    return [
        SheetPair(
            partial(images.one, index),
            partial(images.other, index),
            (
                f"{row['level']}  distance {row['distance']}  similarity {row['similarity']:.2f}",
                f"{row['path']}  |  {row['other_path']}",
            ),
        )
        for index, row in enumerate(images.rows)
    ]


def write_sheets(
    pairs: Sequence[SheetPair],
    folder: Path,
    *,
    on_unread: Callable[[str], None] = lambda _why: None,
) -> list[Path]:
    """Write `001.png`, `002.png` ... into *folder*, with `PAIRS_PER_SHEET` pairs each.

    An image that cannot be read or decoded is shown as a grey square; *on_unread* is called with
    the reason if it could not be read.
    """
    sheets = []
    for start in range(0, len(pairs), PAIRS_PER_SHEET):
        path = folder / f"{start // PAIRS_PER_SHEET + 1:03d}.png"
        with atomic_file(path) as file:
            _sheet(pairs[start : start + PAIRS_PER_SHEET], on_unread).save(file, "PNG")
        sheets.append(path)
    return sheets


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
    for index, line in enumerate(pair.caption):
        position = (corner[0] + _GAP, top + _SIDE + 3 + index * (_TEXT_SIZE + 3))
        draw.text(position, _fitting(line, draw, font), fill="black", font=font)


def _fitting(line: str, draw: ImageDraw.ImageDraw, font: "Font") -> str:
    """Return the line, truncated to the width of a cell."""
    line = one_line(line)
    while draw.textlength(line, font=font) > _CELL[0] - _GAP:
        line = line[:-2] + "…"
    return line


def _small(read: Callable[[], bytes], on_unread: Callable[[str], None]) -> Image.Image:
    """Return the complete image, resized and centered in a square."""
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
    square = Image.new("RGB", (_SIDE, _SIDE), "white")
    square.paste(image.resize(size), ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    return square


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
