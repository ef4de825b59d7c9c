"""External images -> an image tree, and its manifests."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit21k.atomic import write_atomic
from vit21k.errors import DataError, LayoutError, UsageError
from vit21k.lock import locked
from vit21k.manifest.io import read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import CLASSES
from vit21k.prep.cifar import NamedImage
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import classes_of_source, relabel
from vit21k.prep.split import has_published_split, make_val, split_by_source
from vit21k.sources.detect import SourceLayout
from vit21k.sources.folders import is_image_name
from vit21k.sources.zip import read_zip_members

IMAGES = "images"
MANIFESTS = "manifests"
RECORD = "source.json"
_PARTIAL = ".images.partial"


def write_tree(
    images: Iterable[NamedImage],
    out: Path,
    source: Mapping[str, Any],
    *,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Write *images* below ``<out>/images``, once: a tree of the same *source* is left alone.

    A killed write leaves a hidden folder, which the next one begins anew.

    Args:
        images: Read only if the tree is not there.
        out: Next to the tree, ``source.json`` says where it came from.
        source: JSON values that identify where the images come from.
        on_image: Called for each that is written.

    Returns:
        How many images each split has: the first folder of their paths.

    Raises:
        DataError: An image's path leads out of the tree; nothing is kept.
        UsageError: There is a tree of another source.
        OSError: The disk is full or failing.
    """
    with locked(out, command="get-dataset", wait=True):
        record = _read_record(out / RECORD)
        if (out / IMAGES).exists():
            if record.get("source") != source:
                raise UsageError(
                    f"`{out / IMAGES}` exists and is of another source",
                    hint="name another folder, or remove that one",
                )
            return dict(record["counts"])
        partial = out / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        counts: Counter[str] = Counter()
        for path, content in images:
            file = _inside(partial, path)
            if counts.total() == 0 or not file.parent.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            counts[path.partition("/")[0]] += 1
            on_image()
        os.sync()  # one for all of them: the tree's name must not move before its files are there
        write_atomic(
            out / RECORD, json.dumps({"source": source, "counts": counts}, indent=2).encode()
        )
        partial.rename(out / IMAGES)
    return dict(counts)


def _inside(folder: Path, path: str) -> Path:
    """Return the file *path* below *folder*; names of classes and splits are not trusted."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"an image is called {path!r}, which is no path within a tree")
    return folder.joinpath(*parts)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


_NUM_PARTS = 3  # split, class, file


_DAMAGE = (ProblemKind.ARCHIVE_DAMAGED, ProblemKind.ARCHIVE_TRUNCATED)


def read_zip(archive: Path) -> Iterator[NamedImage]:
    """Yield the images of *archive*, which hold ``[...]/train/<class>/<file>`` and ``test``.

    Raises:
        DataError: It is not a zip, is damaged, or has no such folders.
    """
    splits = set()
    with archive.open("rb") as file:
        for member in read_zip_members(file):
            path = _path_of(member.name)
            if member.flaw is not None and member.flaw[0] in _DAMAGE:
                raise DataError(f"`{archive}` is not a complete zip archive: {member.flaw[1]}")
            if path is not None and member.flaw is None:
                splits.add(path.partition("/")[0])
                yield NamedImage(path, bytes(member.content))
    if splits != {"train", "test"}:
        raise DataError(f"`{archive}` has no images in `train/<class>/` and `test/<class>/`")


def _path_of(name: bytes) -> str | None:
    """Return ``split/class/file``; None if the member is no image in a class folder of a split."""
    parts = os.fsdecode(name).split("/")[-_NUM_PARTS:]
    is_split = len(parts) == _NUM_PARTS and parts[0] in ("train", "test")
    is_plain = is_image_name(name) and not any("\\" in part for part in parts)
    return "/".join(parts) if is_split and is_plain else None


_MOST_HELD_OUT = 50
_HELD_OUT_SHARE = 5


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Counts of an imported image tree.

    Attributes:
        num_files: Files that were read.
        num_problems: Files that could not be used; `problems.parquet` lists them.
        num_skipped: Files that are no images, or have no label; listed there, too.
        num_train: Images to train on.
        num_val: Images to validate on.
        num_unused: Images in no split: in other folders, or with several labels in val.
        num_classes: Length of the class list.
        split: Where val is from, in words.
    """

    num_files: int
    num_problems: int
    num_skipped: int
    num_train: int
    num_val: int
    num_unused: int
    num_classes: int
    split: str


def prepare(
    root: Path,
    manifests: Path,
    *,
    on_layout: Callable[[SourceLayout], None] = lambda _layout: None,
) -> Prepared:
    """Hash *root*, merge equal files, and split train from val.

    The published split of *root* is taken, if it has one; else images of every class are held out,
    drawn by their content.  Classes are in the order of the source's own class list, if it has one,
    else sorted by name.

    Args:
        root: A source of any layout; opened read-only.
        manifests: Where the manifests go; not below *root*.
        on_layout: Called with the layout that was detected.

    Raises:
        DataError: There are no images, or there is one of each class.
        LayoutError: Its folders cannot be classes, or there is only one.
        UsageError: *manifests* is inside *root*.
        OSError: The disk is full or failing.
    """
    summary = hash_tree(root, manifests, on_layout=on_layout)
    relabelled = relabel(manifests, classes=classes_of_source(manifests))
    if relabelled.num_classes == 1:
        raise LayoutError(
            f"all images of `{root}` are of one class, `{next(iter(summary.wnids))}`",
            hint="put the images into one folder for each class",
        )
    if has_published_split(manifests):
        published = split_by_source(manifests)
        num_train, num_val = published.num_train, published.num_val
        split = f"the published {published.val_split} split"
    else:
        per_class = held_out_of_each(manifests)
        drawn = make_val(manifests, per_class=per_class, holdout=True, seed=0)
        num_train, num_val = drawn.num_train, drawn.num_val
        if not num_train:
            raise DataError(
                f"nothing is left to train on: the {num_val} images of `{root}` are of as many "
                "classes, and one image of each is held out for validation",
                hint="put at least two images into the folder of each class",
            )
        split = f"{per_class} of each class, held out"
    return Prepared(
        num_files=relabelled.num_files,
        num_problems=summary.num_bad,
        num_skipped=summary.num_skipped,
        num_train=num_train,
        num_val=num_val,
        num_unused=relabelled.num_images - num_train - num_val,
        num_classes=relabelled.num_classes,
        split=split,
    )


def held_out_of_each(manifests: Path) -> int:
    """Return the number of images of each class to hold out: a fifth of the smallest, 1 to 50."""
    counts: Sequence[int] = read_manifest(manifests, CLASSES, ["num_single_label"])[
        "num_single_label"
    ].to_pylist()
    smallest = min((count for count in counts if count >= _HELD_OUT_SHARE), default=0)
    return max(1, min(_MOST_HELD_OUT, smallest // _HELD_OUT_SHARE))
