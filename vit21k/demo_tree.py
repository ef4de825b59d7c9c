"""Generate an image tree with the structure and the faults of ImageNet-21K.

Twelve real classes; their images are drawn, each class by its shape, colours and texture, with
position, size, turn, light and noise varying, so that a small model can learn them in a minute.
Planted are what a real copy of ImageNet-21K has too: the same image filed twice in a class or
under several classes, an empty file, a file that was cut off, and a PNG that is named `.JPEG`.
"""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Plane = npt.NDArray[np.float64]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Look:
    """Appearance of a class: a shape, filled with two colours by a texture."""

    wnid: str
    shape: str
    texture: str
    colours: tuple[Colour, Colour]


WHITE, BLACK, RED, BLUE = (240, 240, 235), (25, 25, 30), (205, 35, 40), (50, 90, 200)
YELLOW, ORANGE, BROWN, LIME = (235, 215, 80), (240, 140, 25), (130, 80, 40), (200, 225, 60)

LOOKS = (
    Look("n02165456", "disc", "dots", (RED, BLACK)),  # ladybug
    Look("n02317335", "star", "plain", (ORANGE, BROWN)),  # starfish
    Look("n02391049", "square", "stripes", (WHITE, BLACK)),  # zebra
    Look("n02778669", "disc", "plain", (BLUE, BLUE)),  # ball
    Look("n03930313", "bars", "plain", (WHITE, WHITE)),  # picket fence
    Look("n04394261", "disc", "circles", (RED, WHITE)),  # target
    Look("n04395106", "square", "crossed", (RED, BLUE)),  # tartan
    Look("n04409515", "disc", "seam", (LIME, WHITE)),  # tennis ball
    Look("n06785654", "square", "checks", (WHITE, BLACK)),  # crossword puzzle
    Look("n07639069", "ring", "plain", (BROWN, BROWN)),  # doughnut
    Look("n07747055", "disc", "spokes", (YELLOW, WHITE)),  # citrus
    Look("n07747607", "disc", "plain", (ORANGE, ORANGE)),  # orange
)
"""The classes, by wnid; all are among the 21,841 of ImageNet-21K."""

COPIED_TO = (
    ("n07747607", ("n07747055",)),  # an orange is a citrus
    ("n07747607", ("n07747055", "n02778669")),  # ... and one looks like a ball
    ("n04409515", ("n02778669",)),  # a tennis ball is a ball
    ("n04409515", ("n02778669",)),
    ("n07639069", ("n04394261",)),  # a doughnut is no target: a wrong label
    ("n02391049", ("n06785654", "n04395106")),  # a zebra is neither
)
"""Images filed under other classes too, each entry another image: from, and to where."""

COPIED_WITHIN = ("n02165456", "n02317335", "n03930313", "n06785654", "n06785654")
"""Images that are stored twice in their own class."""

CUT_OFF, EMPTY, PNG = "n02317335", "n02391049", "n04394261"
"""The classes with the file that was cut off, the empty one, and the PNG."""

_SHAPES: dict[str, Callable[[Plane, Plane], npt.NDArray[np.bool_]]] = {
    "disc": lambda x, y: np.hypot(x, y) < 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) < 0.3,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.9,
    "bars": lambda x, y: (np.maximum(abs(x), abs(y)) < 1) & (np.sin(11 * x) > -0.2),
    "star": lambda x, y: np.hypot(x, y) < 0.65 + 0.4 * np.cos(5 * np.arctan2(y, x)),
}
_TEXTURES: dict[str, Callable[[Plane, Plane], npt.NDArray[np.bool_]]] = {
    "plain": lambda x, _: np.zeros(x.shape, bool),
    "dots": lambda x, y: np.sin(9 * x) * np.sin(9 * y) > 0.4,
    "stripes": lambda x, _: np.sin(14 * x) > 0,
    "checks": lambda x, y: np.sin(10 * x) * np.sin(10 * y) > 0,
    "circles": lambda x, y: np.sin(14 * np.hypot(x, y)) > 0,
    "crossed": lambda x, y: (np.sin(12 * x) > 0.5) | (np.sin(12 * y) > 0.5),
    "seam": lambda x, y: abs(abs(x + 0.3 * y * y) - 0.5) < 0.1,
    "spokes": lambda x, y: np.sin(8 * np.arctan2(y, x)) > 0.7,
}


@dataclass(frozen=True, kw_only=True)
class DemoTree:
    """Facts of the tree, to compare with the results of commands.

    Attributes:
        root: The image root.
        num_classes: Class folders.
        num_files: Files that can be hashed: all but the empty one.
        num_images: Distinct contents among them.
        num_multi_label: Images that are in more than one class.
        empty: The empty file, relative to *root*; so are the next two.
        cut_off: The file that was cut off; it can be hashed, but not decoded.
        png: The PNG named `.JPEG`.
    """

    root: Path
    num_classes: int
    num_files: int
    num_images: int
    num_multi_label: int
    empty: Path
    cut_off: Path
    png: Path

    @property
    def num_copies(self) -> int:
        """Files that repeat the content of another."""
        return self.num_files - self.num_images


class _Folders:
    """Class folders below *root*; files are numbered within their class, as in ImageNet."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._counts: Counter[str] = Counter()

    def add(self, wnid: str, content: bytes) -> Path:
        """Write the next file of a class; return its path relative to the root."""
        self._counts[wnid] += 1
        path = Path("images", wnid, f"{wnid}_{self._counts[wnid]}.JPEG")
        (self._root / path).parent.mkdir(parents=True, exist_ok=True)
        (self._root / path).write_bytes(content)
        return path

    def read(self, wnid: str, number: int) -> bytes:
        """Return the content of file *number* (from 1) of a class."""
        return (self._root / "images" / wnid / f"{wnid}_{number}.JPEG").read_bytes()

    @property
    def num_files(self) -> int:
        """How many files were added."""
        return self._counts.total()


def make_demo_tree(root: Path, *, seed: int = 0, images_per_class: int = 60) -> DemoTree:
    """Write the tree below *root*, which must not exist.

    Args:
        root: The files become ``root/images/<wnid>/<wnid>_<number>.JPEG``.
        seed: Other seeds draw other images; what is planted stays the same.
        images_per_class: Images drawn for each class, at least 11.

    Raises:
        OSError: The disk is full or failing.
    """
    folders = _Folders(root)
    for index, look in enumerate(LOOKS):
        for number in range(images_per_class):
            pixels = draw(look, np.random.default_rng([seed, index, number]))
            folders.add(look.wnid, _encode(pixels, "JPEG"))
    _plant_copies(folders)
    rng = np.random.default_rng([seed, len(LOOKS)])
    looks = {look.wnid: look for look in LOOKS}
    png = folders.add(PNG, _encode(draw(looks[PNG], rng), "PNG"))
    whole = _encode(draw(looks[CUT_OFF], rng), "JPEG")
    cut_off = folders.add(CUT_OFF, whole[: len(whole) // 2])
    empty = folders.add(EMPTY, b"")
    return DemoTree(
        root=root,
        num_classes=len(LOOKS),
        num_files=folders.num_files - 1,
        num_images=len(LOOKS) * images_per_class + 2,
        num_multi_label=len(COPIED_TO),
        empty=empty,
        cut_off=cut_off,
        png=png,
    )


def _plant_copies(folders: _Folders) -> None:
    """Copy some images: number 1 to 6 under other classes, 7 to 11 in their own."""
    for number, (wnid, others) in enumerate(COPIED_TO, start=1):
        for other in others:
            folders.add(other, folders.read(wnid, number))
    for number, wnid in enumerate(COPIED_WITHIN, start=len(COPIED_TO) + 1):
        folders.add(wnid, folders.read(wnid, number))


def draw(look: Look, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one image, (height, width, 3), between 60 and 100 pixels each way."""
    height, width = rng.integers(60, 101, size=2)
    x, y = _turned_grid(height, width, rng)
    inside = _SHAPES[look.shape](x, y)[..., None]
    second = _TEXTURES[look.texture](x, y)[..., None]
    first_colour, second_colour = (_vary(colour, 25, rng) for colour in look.colours)
    background = _vary((120, 130, 115), 60, rng) + 25 * (x * rng.normal() + y)[..., None]
    pixels = np.where(inside, np.where(second, second_colour, first_colour), background)
    pixels = pixels * rng.uniform(0.75, 1.2) + rng.normal(0, 10, pixels.shape)
    clipped: npt.NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return clipped


def _turned_grid(height: int, width: int, rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Return the coordinates of each pixel, where the shape fills the circle of radius 1."""
    radius = min(height, width) * rng.uniform(0.32, 0.46)
    rows, columns = np.mgrid[:height, :width].astype(float)
    y = (rows - height * rng.uniform(0.42, 0.58)) / radius
    x = (columns - width * rng.uniform(0.42, 0.58)) / radius
    angle = rng.uniform(-0.4, 0.4)
    return np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y


def _vary(colour: Colour, spread: float, rng: np.random.Generator) -> Plane:
    return np.asarray(colour) + rng.uniform(-spread, spread, size=3)


def _encode(pixels: npt.NDArray[np.uint8], image_format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format, quality=90)
    return file.getvalue()
