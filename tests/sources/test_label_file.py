"""`vit21k.sources.label_file`: which class a label file gives an image."""

import hashlib
import json
from pathlib import Path

import pytest

from vit21k.errors import LayoutError, ManifestError
from vit21k.manifest.class_lists import known_list
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.label_file import LabelFile, read_label_file

CLASSES = ("n01440764", "n01443537", "n01484850")


def _labels(
    folder: Path,
    content: str,
    name: str = "labels.csv",
    *,
    classes: tuple[str, ...] | None = None,
    label_from: str | None = None,
) -> LabelFile:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return read_label_file(path, folder, class_names=classes, label_from=label_from)


def _val(number: int) -> str:
    return f"val/ILSVRC2012_val_{number:08d}.JPEG"


def test_files_without_label_and_labels_without_file_are_listed(tmp_path: Path) -> None:
    labels = _labels(tmp_path, "file,label\n2.jpg,dog\n1.jpg,cat\n0.jpg,\n1.jpg,cat\n")

    assert labels.class_of("x/1.jpg") == "cat"
    assert labels.class_of("0.jpg") == Problem("0.jpg", ProblemKind.UNLABELLED, "in the label file")
    assert labels.class_of("3.jpg") == Problem(
        "3.jpg", ProblemKind.LABEL_MISSING, "not in the label file"
    )
    assert labels.unused() == [Problem("2.jpg", ProblemKind.FILE_MISSING, "")]


def test_wnids_in_lines_are_of_the_numbered_images_of_ilsvrc(tmp_path: Path) -> None:
    labels = _labels(tmp_path, "n01751748\nn09193705\n", "in1k_val_wnids.txt")

    assert labels.class_of(_val(2)) == "n09193705"
    assert isinstance(labels.class_of("val/2.JPEG"), Problem)
    assert [problem.path for problem in labels.unused()] == ["ILSVRC2012_val_00000001"]


def test_the_ground_truth_of_the_devkit_needs_no_class_list(tmp_path: Path) -> None:
    devkit = known_list("in1k-devkit").wnids
    numbers = [490, 361, 171, *range(1, 1001)]
    text = "\n".join(map(str, numbers))

    with pytest.raises(LayoutError, match="are numbers") as caught:
        _labels(tmp_path, text, "truth.txt")
    assert "`in1k-devkit` for ILSVRC2012_ID" in (caught.value.hint or "")
    assert _labels(tmp_path, text, "truth.txt", classes=devkit).class_of(_val(1)) == "n01751748"

    digest = hashlib.sha256(text.encode()).hexdigest()
    known = read_label_file(tmp_path / "truth.txt", tmp_path, ground_truth=digest)
    assert known.class_of(_val(1)) == "n01751748"
    in1k = known_list("in1k").wnids
    with pytest.raises(LayoutError, match="ILSVRC2012_ID"):
        read_label_file(tmp_path / "truth.txt", tmp_path, class_names=in1k, ground_truth=digest)


@pytest.mark.parametrize(("numbers", "first"), [((0, 2), 0), ((1, 3), 1), ((-1, 3), 1)])
def test_numbers_count_from_where_the_list_shows(
    numbers: tuple[int, ...], first: int, tmp_path: Path
) -> None:
    text = "".join(f"{number}.jpg,{number}\n" for number in numbers)

    labels = _labels(tmp_path, text, classes=CLASSES)

    for number in numbers:
        label = labels.class_of(f"{number}.jpg")
        assert isinstance(label, Problem) if number < 0 else label == CLASSES[number - first]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg,1\n2.jpg,2\n", "from 0 or from 1 is not clear"),
        ("1.jpg,0\n2.jpg,3\n", "3 is not the number of a class"),
        ("1.jpg,0\n2.jpg,-2\n", "-2 is not the number of a class"),
        ("1.jpg,1.0\n2.jpg,4.0\n", "4 is not the number|not clear"),
    ],
)
def test_numbers_that_fit_no_class_or_two_are_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError, match=message):
        _labels(tmp_path, text, classes=CLASSES)


def test_boxes_of_kaggle_are_of_one_class(tmp_path: Path) -> None:
    header = "ImageId,PredictionString\n"
    text = header + "ILSVRC2012_val_00000001,n01751748 1 2 3 4 n01751748 5 6 7 8 \n"

    labels = _labels(tmp_path, text, "LOC_val_solution.csv")

    assert labels.class_of(_val(1)) == "n01751748"
    with pytest.raises(ManifestError, match="several labels: n01440764, n01443537"):
        _labels(tmp_path, header + "a,n01440764 1 2 3 4 n01443537 1 2 3 4\n")


def test_metadata_of_hugging_face_are_relative_to_their_folder(tmp_path: Path) -> None:
    lines = [{"file_name": "1.png", "label": "cat"}, {"file_name": "sub/2.png", "label": "dog"}]
    text = "\n".join(map(json.dumps, lines))

    labels = _labels(tmp_path, text, "train/metadata.jsonl")

    assert labels.class_of("train/1.png") == "cat"
    assert labels.class_of("train/sub/2.png") == "dog"
    assert isinstance(labels.class_of("val/1.png"), Problem)


def test_a_column_is_selected_by_name(tmp_path: Path) -> None:
    text = "file_name,coarse,fine\n1.jpg,animal,cat\n2.jpg,animal,dog\n"

    with pytest.raises(LayoutError, match="not clear: coarse, fine") as caught:
        _labels(tmp_path, text)
    assert "--label-from column:NAME" in (caught.value.hint or "")
    assert _labels(tmp_path, text, label_from="column:Fine").class_of("2.jpg") == "dog"
    assert _labels(tmp_path, text.replace("fine", "label")).class_of("2.jpg") == "dog"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg,cat\n1.jpg,dog\n", "several labels: cat, dog"),
        ('{"1.jpg": ["cat", "dog"]}', "several labels: cat, dog"),
        ("1.jpg,\n", "no labels"),
        ("1.jpg,a\x07b\n", "no class name"),
        ("cat\ndog\n", "line 1 is neither a wnid nor a number"),
        ("n01440764\n\nn01443537\n", "line 2 is neither"),
        ("1.jpg\n2.jpg\n", "neither a wnid nor a number"),
    ],
)
def test_a_file_without_one_label_for_an_image_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=message):
        _labels(tmp_path, text)


def test_an_ambiguous_name_is_refused(tmp_path: Path) -> None:
    labels = _labels(tmp_path, "1.jpg,cat\n")
    labels.class_of("a/1.jpg")
    with pytest.raises(LayoutError, match=r"may be `a/1\.jpg` or `b/1\.jpg`"):
        labels.class_of("b/1.jpg")
    with pytest.raises(LayoutError, match=r"may be `a/1\.jpg` or `b/1\.jpg` of the label"):
        _labels(tmp_path, "a/1.jpg,cat\nb/1.jpg,dog\n").class_of("1.jpg")
