"""Labels that are in a file next to the images: `hash --labels FILE`.

Forms, as `manifest.file_lists` reads them:

- names of images with their labels, such as `1.jpg,cat`, Hugging Face's metadata.csv or .jsonl, or
  Kaggle's LOC_val_solution.csv; `--label-from column:NAME` selects the column;
- one label per line, for ILSVRC2012_val_00000001.JPEG and its successors: wnids, or the numbers of
  the development kit's ILSVRC2012_validation_ground_truth.txt.

A label is the name of a class, or its number in a class list.  Whether numbers count from 0 or from
1 shows in the file: the list's length among them, or 0.  One image has one label.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vit21k.errors import LayoutError, ManifestError
from vit21k.manifest.class_lists import DEVKIT, known_list
from vit21k.manifest.file_lists import FileNames, Table, is_number, read_text_table
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.container import UNLABELLED, flaw_of_class_name

LABEL_COLUMNS = (
    *("label", "labels", "class", "class_name", "classname", "cls", "wnid", "synset", "category"),
    *("target", "label_name", "class_id", "label_id", "category_id", "predictionstring"),
)
"""What columns with labels are called, in lower case."""

_BOXES = "predictionstring"  # Kaggle: `n01440764 10 20 30 40`, once for each box
_CELLS_OF_BOX = 5
_WNID = re.compile(r"n\d{8}")
GROUND_TRUTH = "323ca84ec5546dccc4dd11dbd2b3fc0094818728b5613f6089bd2f1428a04eaf"
"""SHA-256 of the 50,000 numbers of ILSVRC2012_validation_ground_truth.txt, joined by line feeds."""

_HUGGING_FACE = ("metadata.csv", "metadata.jsonl")
_NUM_NAMED = 3

WRITE_PATHS = "write the paths of the images relative to the image root into the label file"


class LabelFile:
    """The labels of a file, by the names that it gives the images.

    Attributes:
        identity: Name of the file, SHA-256 of its bytes, and `num_labels`; of several, all names.
        form: How they were read, in words.
        num_labels: How many images have one.
    """

    def __init__(self, paths: Sequence[Path], label_of: dict[str, str], form: str) -> None:
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
        self.form = form
        self.num_labels = len(label_of)
        name = ", ".join(path.name for path in paths)
        self.identity: dict[str, str | int]
        self.identity = {"name": name, "sha256": digest, "num_labels": self.num_labels}
        self._names = list(label_of)
        self._labels = list(label_of.values())
        self._matcher = FileNames(self._names)
        self._path_of: dict[int, str] = {}

    def class_of(self, path: str) -> str | Problem:
        """Return the class of the image at *path*, relative to the root, or why it has none.

        Raises:
            LayoutError: A name means two images, or an image has two names with other labels.
        """
        found = self._matcher.find(path)
        if len({self._labels[index] for index in found}) > 1:
            names = [self._names[index] for index in found]
            raise LayoutError(
                f"`{path}` may be `{names[0]}` or `{names[1]}` of the label file",
                hint=WRITE_PATHS,
            )
        for index in found:
            if self._path_of.setdefault(index, path) != path:
                raise LayoutError(
                    f"`{self._names[index]}` of the label file may be `{self._path_of[index]}` or "
                    f"`{path}`",
                    hint=WRITE_PATHS,
                )
        if not found:
            return Problem(path, ProblemKind.LABEL_MISSING, "not in the label file")
        label = self._labels[found[0]]
        return label or Problem(path, ProblemKind.UNLABELLED, "in the label file")

    def unused(self) -> list[Problem]:
        """Return the names that no image has, in the order of their bytes."""
        unused = (name for k, name in enumerate(self._names) if k not in self._path_of)
        return [Problem(name, ProblemKind.FILE_MISSING, "") for name in sorted(unused)]

    def refuse(self, root: str) -> NoReturn:
        """Refuse a file that has a label for no image of *root*."""
        raise LayoutError(
            f"no image of `{root}` has a label in `{self.identity['name']}`, which has labels of "
            f"`{self._names[0]}` and {self.num_labels - 1:,} more",
            hint=WRITE_PATHS,
        )


def read_label_file(
    path: Path,
    root: Path,
    *,
    class_names: Sequence[str] | None = None,
    label_from: str | None = None,
    ground_truth: str = GROUND_TRUTH,
) -> LabelFile:
    """Read a label file.

    Args:
        path: The file.
        root: The image root; Hugging Face's metadata are in it or below it, next to their images.
        class_names: Names in the order of the numbers.
        label_from: `column:NAME`, where several columns may be labels.
        ground_truth: SHA-256 of numbers that are known to be ILSVRC2012_ID.

    Raises:
        ManifestError: No such file, it is no list of labels, or an image has two.
        LayoutError: What its columns or numbers mean is not clear; the hint says what settles it.
    """
    table = read_text_table(path)
    if len(table.rows[0]) == 1:
        return _read_lines(table, class_names, ground_truth)
    names = [_relative(name, path, root) for name in table.column(table.file_column())]
    index = _label_column(table, label_from)
    title = table.columns[index] if table.columns else ""
    labels = list(map(_of_boxes if title == _BOXES else str, table.column(index)))
    if any(labels) and all(is_number(label) for label in labels if label):
        labels = _names_of(path, labels, class_names)
    label_of = _without_repeats(path, names, labels)
    return LabelFile([path], label_of, f"column {title}" if title else "file, label")


MAP_SUFFIX = "_map.txt"
"""End of the name of the list of a zip, after the stem of its name."""


def read_zip_maps(
    root: Path, archive: str | None = None, class_names: Sequence[str] | None = None
) -> LabelFile | None:
    """Read the lists next to zips, as Swin Transformer has them: `train_map.txt` of `train.zip`.

    Each line is the path of an image in the zip and its class index, from 0.  The classes are the
    folders in the zips, if each index is that of one folder.

    Args:
        root: The folder of the zips.
        archive: Name of the one that counts; None: all.
        class_names: Names in the order of the indices.

    Returns:
        None if no zip has a list.

    Raises:
        ManifestError: A list is malformed.
        LayoutError: The names of the classes are not clear.
    """
    stems = [path.stem for path in sorted(root.glob("*.[zZ][iI][pP]"))]
    maps = {stem: _read_map(root / f"{stem}{MAP_SUFFIX}") for stem in stems}
    indices = {f"{stem}/{name}": index for stem, each in maps.items() for name, index in each}
    wanted = stems if archive is None else [Path(archive).stem]
    paths = [root / f"{stem}{MAP_SUFFIX}" for stem in wanted if maps.get(stem)]
    if not paths:
        return None
    names = _classes_of_map(indices, class_names)
    label_of = {
        path: names[index] for path, index in indices.items() if path.partition("/")[0] in wanted
    }
    return LabelFile(paths, label_of, "path in the zip, class index")


def _read_map(path: Path) -> list[tuple[str, int]]:
    if not path.exists():
        return []
    table = read_text_table(path)
    if len(table.rows[0]) != 2 or not all(map(is_number, table.column(1))):  # noqa: PLR2004
        raise ManifestError(
            f"`{path}` is not a list of paths and class indices, as the one next to a zip is",
            hint="rename it if it is another thing; `--labels FILE` reads other lists of labels",
        )
    return [(name.replace("\\", "/").lstrip("./"), int(index)) for name, index in table.rows]


def _classes_of_map(
    indices: Mapping[str, int], class_names: Sequence[str] | None
) -> Mapping[int, str]:
    """Return the classes by their indices."""
    names = dict(enumerate(class_names or ()))
    folders = {
        (index, path.split("/")[-2]) for path, index in indices.items() if path.count("/") > 1
    }
    for index, folder in sorted(folders):
        first = names.setdefault(index, folder)
        if first != folder and (class_names is None or _WNID.fullmatch(folder)):
            raise _unclear(f"class index {index} is `{first}` and `{folder}`")
    unnamed = sorted(set(indices.values()) - names.keys())
    if unnamed:
        raise _unclear(f"the name of class index {unnamed[0]} is not known")
    if len(set(names.values())) < len(names):
        raise _unclear("several class indices are of one folder")
    return names


def _unclear(what: str) -> LayoutError:
    return LayoutError(
        f"the lists next to the zips: {what}",
        hint="give the class names in the order of the indices: `--classes LIST`; or take the "
        "folders in the zips for classes: `--label-from folder`",
    )


def _relative(name: str, path: Path, root: Path) -> str:
    """Return the path of an image relative to the root, which Hugging Face's is to its list."""
    folder = path.resolve().parent
    if path.name not in _HUGGING_FACE or not folder.is_relative_to(root.resolve()):
        return name
    return (folder.relative_to(root.resolve()) / name).as_posix()


def _label_column(table: Table, label_from: str | None) -> int:
    columns = table.columns or ()
    others = [k for k in range(len(table.rows[0])) if k != table.file_column()]
    wanted = (label_from or "").removeprefix("column:").lower()
    if wanted:
        found = [k for k in others if columns[k : k + 1] == (wanted,)]
    elif len(others) == 1:
        found = others
    else:
        found = [k for k in others if columns[k : k + 1] and columns[k] in LABEL_COLUMNS]
    if len(found) != 1:
        may_be = [columns[k] for k in found or others] if columns else ["no header"]
        raise LayoutError(
            f"`{table.path}`: which column has the labels is not clear: {', '.join(may_be)}",
            hint="`--label-from column:NAME` selects it by its name in the header",
        )
    return found[0]


def _of_boxes(cell: str) -> str:
    """Return the class of the boxes of Kaggle's `PredictionString`; of several, one per line."""
    return "\n".join(dict.fromkeys(cell.split()[::_CELLS_OF_BOX]))


def _read_lines(table: Table, class_names: Sequence[str] | None, ground_truth: str) -> LabelFile:
    """Read one label per line, for the numbered images of ILSVRC's validation set."""
    labels = table.column(0)
    if all(map(is_number, labels)):
        is_devkit = hashlib.sha256("\n".join(labels).encode()).hexdigest() == ground_truth
        labels = _names_of(table.path, labels, class_names, is_devkit=is_devkit)
    elif wrong := [k for k, label in enumerate(labels) if not _WNID.fullmatch(label)]:
        raise ManifestError(
            f"`{table.path}` has one value per line, and line {wrong[0] + 1:,} is neither a wnid "
            f"nor a number: {labels[wrong[0]][:80]!r}",
            hint="write the name of an image and its label into each line: `1.jpg,cat`",
        )
    names = [f"ILSVRC2012_val_{number:08d}" for number in range(1, len(labels) + 1)]
    return LabelFile(
        [table.path], dict(zip(names, labels, strict=True)), f"line N is of {names[0][:-8]}N"
    )


def _names_of(
    path: Path, labels: list[str], class_names: Sequence[str] | None, *, is_devkit: bool = False
) -> list[str]:
    """Return the classes with these numbers; "" for `UNLABELLED`."""
    numbers = [int(label.partition(".")[0]) if label else UNLABELLED for label in labels]
    if is_devkit and class_names is None:
        class_names = known_list(DEVKIT).wnids
    if class_names is None:
        raise LayoutError(
            f"the labels in `{path}` are numbers",
            hint=f"`--classes LIST` names the classes: `{DEVKIT}` for ILSVRC2012_ID, the "
            "numbers of ILSVRC's development kit; `in1k` for the ranks of its wnids; or a file",
        )
    is_of_devkit = tuple(class_names) == known_list(DEVKIT).wnids
    if is_devkit and not is_of_devkit:
        raise LayoutError(
            f"`{path}` is ILSVRC's ground truth, whose numbers are ILSVRC2012_ID, and `--classes` "
            "is another order",
            hint="leave `--classes` out; class indices are the business of `relabel --classes`",
        )
    first = 1 if is_of_devkit else _first_number(path, set(numbers) - {UNLABELLED}, class_names)
    wrong = [n for n in numbers if n != UNLABELLED and not first <= n < first + len(class_names)]
    if wrong:
        raise LayoutError(
            f"`{path}`: {wrong[0]} is not the number of a class; `--classes` has "
            f"{len(class_names):,}, counted from {first}",
            hint="give the class list that the labels were made with: `--classes LIST`",
        )
    return ["" if n == UNLABELLED else class_names[n - first] for n in numbers]


def _first_number(path: Path, numbers: set[int], class_names: Sequence[str]) -> int:
    """Return from where the numbers count."""
    if 0 in numbers:
        return 0
    if len(class_names) in numbers:
        return 1
    raise LayoutError(
        f"whether the numbers in `{path}` count from 0 or from 1 is not clear: neither 0 nor "
        f"{len(class_names):,} is among them",
        hint="write the names of the classes in place of their numbers",
    )


def _without_repeats(path: Path, names: list[str], labels: list[str]) -> dict[str, str]:
    label_of: dict[str, str] = {}
    for name, label in zip(names, labels, strict=True):
        first = label_of.setdefault(name, label)
        if first != label or "\n" in label:
            both = label.split("\n") if "\n" in label else [first, label]
            raise ManifestError(
                f"`{path}`: `{name}` has several labels: {', '.join(both[:_NUM_NAMED])}",
                hint="write one label for each image; images with several labels are copied into "
                "the folder of each, as in ImageNet",
            )
        if label and (flaw := flaw_of_class_name(label)):
            raise ManifestError(f"`{path}`: the label of `{name}` is {flaw}")
    if not any(label_of.values()):
        raise ManifestError(f"`{path}` has no labels", hint=f"for example: `{names[0]},cat`")
    return label_of
