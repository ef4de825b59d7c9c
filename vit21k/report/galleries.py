"""Galleries of the report: merged images, val, near pairs, bad files; as JPEGs within a budget."""

import base64
import io
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vit21k.data.dataset import ImageDataset, folder_with_indices
from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError
from vit21k.manifest.io import Manifest
from vit21k.manifest.schema import IMAGES, LOCATOR_COLUMNS, PROBLEMS, VAL
from vit21k.near.sheet import PairImages
from vit21k.report.numbers import MergedImages, Numbers
from vit21k.sources.read import ImageReader, Root, why_unread

_QUALITY = 70

UNREAD, UNDECODED = "could not be read", "cannot be decoded"
"""Placeholders for the address of an image that cannot be shown."""


class ThumbBudget:
    """Encodes images as `data:` URLs until its budget is spent.

    Attributes:
        num_bytes_left: Remaining bytes of the page.
        unread: Why images could not be read.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes_left = num_bytes
        self.unread: list[str] = []

    def thumb(self, read: Callable[[], bytes], side: int) -> str | None:
        """Return the URL of an image of at most *side* pixels.

        Args:
            read: Returns the content of the file.
            side: Maximum of the longer side.

        Returns:
            None if the budget is spent; `UNREAD` or `UNDECODED` if the image cannot be shown.
        """
        if self.num_bytes_left <= 0:
            return None
        try:
            content = read()
        except (ImageError, OSError) as error:
            self.unread.append(why_unread(error))
            return UNREAD
        try:
            jpeg = base64.b64encode(small_jpeg(content, side)).decode()
        except ImageError:
            return UNDECODED
        address = f"data:image/jpeg;base64,{jpeg}"
        self.num_bytes_left -= len(address)
        return address


def small_jpeg(content: bytes, side: int) -> bytes:
    """Return the image, of at most *side* pixels, as a JPEG without metadata.

    Raises:
        ImageError: It is not an image, or damaged.
    """
    image = decode_rgb(content)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


MAX_GROUPS = 240
MAX_VAL_CLASSES = 60
MAX_VAL_OF_A_CLASS = 8
MAX_PAIRS = 80
MAX_PROBLEMS = 200

_GROUP_SIDE = 112
_VAL_SIDE = 72
_PAIR_SIDE = 96
_FIRST_BYTES = 24


class Group(NamedTuple):
    """An image with several labels.

    Attributes:
        thumb: From `ThumbBudget.thumb`.
        path: Path of the kept file.
        relation: Relation of the two least related labels.
        labels: Names of its classes, with wnids.
    """

    thumb: str
    path: str
    relation: str
    labels: list[str]


class ValClass(NamedTuple):
    """Some val images of a class.

    Attributes:
        title: Name and wnid.
        num_images: Number of val images.
        thumbs: URLs of the first.
    """

    title: str
    num_images: int
    thumbs: list[str]


class NearPair(NamedTuple):
    """Two images that match.

    Attributes:
        thumbs: Their URLs.
        caption: Level, distance and similarity.
        paths: Their paths.
    """

    thumbs: tuple[str, str]
    caption: str
    paths: tuple[str, str]


class BadFile(NamedTuple):
    """A file that was not used.

    Attributes:
        path, kind, detail: As in `problems.parquet`.
        first_bytes: In hexadecimal, and as text.
    """

    path: str
    kind: str
    detail: str
    first_bytes: tuple[str, str]


def show_groups(
    numbers: Numbers, merged: MergedImages, budget: ThumbBudget, root: Root | None
) -> list[Group]:
    """Return the first images with several labels."""
    images = ImageDataset.from_manifest(numbers.manifests[IMAGES.name], root)
    groups = []
    for conflict in merged.conflicts.slice(0, MAX_GROUPS).to_pylist():
        thumb = budget.thumb(partial(images.read_bytes, conflict["row"]), _GROUP_SIDE)
        if thumb is None:
            break
        labels = numbers.classes["title"].iloc[conflict["label_ids"]].tolist()
        groups.append(Group(thumb, conflict["path"], conflict["relation"], labels))
    return groups


def show_val(numbers: Numbers, budget: ThumbBudget, root: Root | None) -> list[ValClass]:
    """Return the first val images of some classes, evenly spaced over the list."""
    if VAL.name not in numbers.manifests or not numbers.num_rows(VAL):
        return []
    images = ImageDataset.from_manifest(numbers.manifests[VAL.name], root)
    row_of = np.arange(len(images))
    label_R = images.labels_of(row_of)[1]  # one per image
    present, first, counts = np.unique(label_R, return_index=True, return_counts=True)
    chosen = np.unique(np.linspace(0, len(present) - 1, MAX_VAL_CLASSES).astype(int))
    shown = []
    for index in chosen.tolist():
        rows = range(first[index], first[index] + min(counts[index], MAX_VAL_OF_A_CLASS))
        thumbs = _thumbs(budget, [partial(images.read_bytes, row) for row in rows])
        if thumbs is None:
            break
        title = str(numbers.classes["title"].iloc[present[index]])
        shown.append(ValClass(title, int(counts[index]), thumbs))
    return shown


def _thumbs(budget: ThumbBudget, reads: list[Callable[[], bytes]]) -> list[str] | None:
    """Return the thumbnails of a class; None if the budget does not suffice."""
    thumbs = []
    for read in reads:
        thumb = budget.thumb(read, _VAL_SIDE)
        if thumb is None:
            return None
        thumbs.append(thumb)
    return thumbs


def show_pairs(manifest: Manifest | None, budget: ThumbBudget, root: Root | None) -> list[NearPair]:
    """Return the first pairs of `leaks.parquet` or `near_duplicates.parquet`."""
    if manifest is None or not manifest.num_rows:
        return []
    images = PairImages(manifest, root=root, max_pairs=MAX_PAIRS)
    pairs = []
    for index, row in enumerate(images.rows):
        one = budget.thumb(partial(images.one, index), _PAIR_SIDE)
        other = budget.thumb(partial(images.other, index), _PAIR_SIDE)
        if one is None or other is None:
            break
        caption = f"{row['level']}, distance {row['distance']}, similarity {row['similarity']:.2f}"
        pairs.append(NearPair((one, other), caption, (row["path"], row["other_path"])))
    return pairs


def show_problems(numbers: Numbers, root: Root | None) -> list[BadFile]:
    """Return the first files that were not used, with their first bytes."""
    manifest = numbers.manifests.get(PROBLEMS.name)
    if manifest is None:
        return []
    reader = ImageReader(root or manifest.header.root)
    rows = manifest.read().slice(0, MAX_PROBLEMS).to_pylist()
    starts = [_shown(reader.first_bytes(row["path"], _FIRST_BYTES)) for row in rows]
    return [
        BadFile(row["path"], row["kind"], row["detail"], start)
        for row, start in zip(rows, starts, strict=True)
    ]


def show_undecoded(numbers: Numbers, root: Root | None) -> list[BadFile]:
    """Return the first files that were hashed but cannot be decoded."""
    undecoded = numbers.undecoded().slice(0, MAX_PROBLEMS)
    images = numbers.manifests[IMAGES.name]
    locators = images.read(LOCATOR_COLUMNS).take(undecoded["row"]).to_pylist()
    reader = ImageReader(root or images.header.root, manifests=folder_with_indices(images))
    return [
        BadFile(locator["path"], "not decoded", problem, _shown(_start_of(reader, locator)))
        for locator, problem in zip(locators, undecoded["problem"].to_pylist(), strict=True)
    ]


def _start_of(reader: ImageReader, locator: dict[str, Any]) -> bytes:
    with suppress(ImageError, OSError):
        return reader.read(**locator)[:_FIRST_BYTES]
    return b""


def _shown(content: bytes) -> tuple[str, str]:
    """Return bytes in hexadecimal and as text."""
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in content)  # noqa: PLR2004
    return content.hex(" "), text
