"""What the page shows in pictures: merged groups, val, near pairs; and how bad files begin.

Every list says how many it shows of how many there are.
"""

import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit21k.data.pictures import Pictures
from vit21k.manifest.reader import Manifest
from vit21k.manifest.schema import IMAGES, PROBLEMS, VAL
from vit21k.near.pair_pictures import PairPictures
from vit21k.report.groups import MergedPictures
from vit21k.report.numbers import Numbers
from vit21k.report.thumbs import ThumbBudget

MAX_GROUPS = 240
MAX_VAL_CLASSES = 60
MAX_VAL_OF_A_CLASS = 8
MAX_PAIRS = 80
MAX_PROBLEMS = 200

_GROUP_SIDE = 112
_VAL_SIDE = 72
_PAIR_SIDE = 96
_FIRST_BYTES = 24
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


class Group(NamedTuple):
    """A picture that lies under several classes.

    Attributes:
        thumb: A `data:` address; empty if the picture cannot be shown.
        path: Of the kept file.
        relation: How the two labels that fit least relate.
        labels: Names of its classes, with wnids.
    """

    thumb: str
    path: str
    relation: str
    labels: list[str]


class ValClass(NamedTuple):
    """Some of the val pictures of a class.

    Attributes:
        title: Name and wnid.
        num_pictures: How many there are.
        thumbs: Addresses of the first.
    """

    title: str
    num_pictures: int
    thumbs: list[str]


class NearPair(NamedTuple):
    """Two pictures that are the same.

    Attributes:
        thumbs: Their addresses.
        caption: Level, distance and similarity.
        paths: Their files.
    """

    thumbs: tuple[str, str]
    caption: str
    paths: tuple[str, str]


class Problem(NamedTuple):
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
    numbers: Numbers, merged: MergedPictures, budget: ThumbBudget, root: Path | None
) -> list[Group]:
    """Return the first of the pictures with several labels."""
    pictures = Pictures.from_manifest(numbers.manifests[IMAGES.name], root)
    groups = []
    for conflict in merged.conflicts.slice(0, MAX_GROUPS).to_pylist():
        thumb = budget.thumb(partial(pictures.read_bytes, conflict["row"]), _GROUP_SIDE)
        if thumb is None:
            break
        labels = numbers.classes["title"].iloc[conflict["label_ids"]].tolist()
        groups.append(Group(thumb, conflict["path"], conflict["relation"], labels))
    return groups


def show_val(numbers: Numbers, budget: ThumbBudget, root: Path | None) -> list[ValClass]:
    """Return the first val pictures of some classes, evenly spaced over the list."""
    if VAL.name not in numbers.manifests or not numbers.num_rows(VAL):
        return []
    pictures = Pictures.from_manifest(numbers.manifests[VAL.name], root)
    row_of = np.arange(len(pictures))
    label_R = pictures.labels_of(row_of)[1]  # each has one
    present, first, counts = np.unique(label_R, return_index=True, return_counts=True)
    chosen = np.unique(np.linspace(0, len(present) - 1, MAX_VAL_CLASSES).astype(int))
    shown = []
    for place in chosen.tolist():
        rows = range(first[place], first[place] + min(counts[place], MAX_VAL_OF_A_CLASS))
        thumbs = _thumbs(budget, [partial(pictures.read_bytes, row) for row in rows])
        if thumbs is None:
            break
        title = str(numbers.classes["title"].iloc[present[place]])
        shown.append(ValClass(title, int(counts[place]), thumbs))
    return shown


def _thumbs(budget: ThumbBudget, reads: list[Callable[[], bytes]]) -> list[str] | None:
    """Return the thumbnails of a class; None if the budget ends before."""
    thumbs = []
    for read in reads:
        thumb = budget.thumb(read, _VAL_SIDE)
        if thumb is None:
            return None
        thumbs.append(thumb)
    return thumbs


def show_pairs(manifest: Manifest | None, budget: ThumbBudget, root: Path | None) -> list[NearPair]:
    """Return the first pairs of `leaks.parquet` or `near_duplicates.parquet`."""
    if manifest is None or not manifest.num_rows:
        return []
    pictures = PairPictures(manifest, root=root, max_pairs=MAX_PAIRS)
    pairs = []
    for index, row in enumerate(pictures.rows):
        one = budget.thumb(partial(pictures.one, index), _PAIR_SIDE)
        other = budget.thumb(partial(pictures.other, index), _PAIR_SIDE)
        if one is None or other is None:
            break
        caption = f"{row['level']}, distance {row['distance']}, similarity {row['similarity']:.2f}"
        pairs.append(NearPair((one, other), caption, (row["path"], row["other_path"])))
    return pairs


def show_problems(numbers: Numbers, root: Path | None) -> list[Problem]:
    """Return the first of the files that were not used, with their first bytes."""
    manifest = numbers.manifests.get(PROBLEMS.name)
    if manifest is None:
        return []
    folder = root or Path(manifest.header.root)
    return [
        Problem(row["path"], row["kind"], row["detail"], first_bytes(folder / row["path"]))
        for row in manifest.read().slice(0, MAX_PROBLEMS).to_pylist()
    ]


def show_undecoded(numbers: Numbers, root: Path | None) -> list[Problem]:
    """Return the first of the files that were hashed, but cannot be decoded."""
    undecoded = numbers.undecoded().slice(0, MAX_PROBLEMS)
    images = numbers.manifests[IMAGES.name]
    paths = images.read(["path"])["path"].take(undecoded["row"]).to_pylist()
    folder = root or Path(images.header.root)
    return [
        Problem(path, "not decoded", problem, first_bytes(folder / path))
        for path, problem in zip(paths, undecoded["problem"].to_pylist(), strict=True)
    ]


def first_bytes(path: Path) -> tuple[str, str]:
    """Return how a file begins, in hexadecimal and as text; empty if it is no regular file."""
    try:
        descriptor = os.open(path, _READ_FLAGS)
    except (OSError, ValueError):
        return "", ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return "", ""
        content = os.read(descriptor, _FIRST_BYTES)
    except OSError:
        return "", ""
    finally:
        os.close(descriptor)
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in content)  # noqa: PLR2004
    return content.hex(" "), text
