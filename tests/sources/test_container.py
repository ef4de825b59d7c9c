"""What all containers share: class indices and names, and the splits their paths name."""

import pytest

from vit21k.errors import LayoutError, UsageError
from vit21k.sources.container import (
    UNLABELLED,
    LabelOptions,
    flaw_of_class_name,
    label_options,
    split_of,
)


def test_an_index_is_the_rank_in_the_given_class_list() -> None:
    labels = LabelOptions(class_names=("tench", "goldfish"))
    assert [labels.name_of_index(i, "a.tar") for i in (1, 0, UNLABELLED)] == [
        "goldfish",
        "tench",
        None,
    ]


@pytest.mark.parametrize("class_names", [None, ("tench",)])
def test_an_index_without_a_name_is_refused(class_names: tuple[str, ...] | None) -> None:
    with pytest.raises(LayoutError) as caught:
        LabelOptions(class_names=class_names).name_of_index(1, "a.tar")
    assert "--classes LIST" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("imagenet22k-train-0000.tar", "train"),
        ("imagenet22k-validation-0511.tar", "validation"),
        ("data/test-00000-of-00028.parquet", "test"),
        ("default/train/0000.parquet", "train"),
        ("ILSVRC/Data/CLS-LOC/val/", "validation"),
        ("train/test/", "train"),
        ("n01440764/", None),
        ("training_trains/", None),
        ("train_val_0001.tar", None),
        ("ILSVRC2012_img_val.tar", "validation"),
    ],
)
def test_a_path_names_its_split(path: str, split: str | None) -> None:
    assert split_of(path) == split


@pytest.mark.parametrize("name", ["", " ", "a\0b", "a\nb", "x" * 1001])
def test_a_malformed_class_name_is_detected(name: str) -> None:
    assert flaw_of_class_name(name)


def test_a_name_in_words_is_a_class_name() -> None:
    assert flaw_of_class_name("tench, Tinca tinca (Pörsch)") is None


@pytest.mark.parametrize("text", ["", "json", "json:", "cls:", "key:x", "dog", "column"])
def test_a_malformed_label_source_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="malformed"):
        label_options(text, None, None)
