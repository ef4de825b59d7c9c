"""WebDataset shards: images, labels from each place that may have them, and malformed shards."""

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from tar_files import tar_of

from vit21k.errors import LayoutError
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.container import NO_OPTIONS, ContainerImage, LabelOptions
from vit21k.sources.webdataset import ShardEntry, detect_labels, preview, read_webdataset

JPEG = b"\xff\xd8\xff"
SHARD = "imagenet12k-train-0000.tar"


def _sample(key: str, **members: Any) -> dict[str, bytes]:
    """Return the members of a sample: an image, and what *members* says."""
    files = {f"{key}.jpg": JPEG + key.encode()}
    for suffix, value in members.items():
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        files[f"{key}.{suffix}"] = content
    return files


def _shard(*samples: Mapping[str, bytes]) -> io.BytesIO:
    file = io.BytesIO(tar_of([pair for sample in samples for pair in sample.items()]))
    file.name = SHARD
    return file


def _read(
    shard: io.BytesIO, labels: LabelOptions = NO_OPTIONS, **facts: Any
) -> tuple[list[tuple[str, Any]], list[Problem]]:
    """Return name and label of each image, and the problems."""
    found = detect_labels(preview(shard, SHARD), labels, SHARD)
    items = list(read_webdataset(shard, SHARD, found, ShardEntry(None, None)._replace(**facts)))
    images = [item for item in items if isinstance(item, ContainerImage)]
    problems = [item for item in items if isinstance(item, Problem)]
    return [(image.path.rpartition("/")[2], image.label) for image in images], problems


NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "timm": ({"class_name": "n02", "label": 4, "filename": "n02/n02_1.JPEG"}, "class_name"),
    "img2dataset": ({"url": "http://x", "caption": "a dog", "label": "dog"}, "label"),
    "a synset": ({"synset": "n02085620"}, "synset"),
    "a path": ({"filename": "n02085620/n02085620_1.JPEG", "label": 4}, "filename"),
}


@pytest.mark.parametrize("what", NAMED)
def test_a_class_name_in_json_is_the_class(what: str) -> None:
    fields, name = NAMED[what]
    label = "n02085620" if name == "filename" else fields[name]
    shard = _shard(_sample("00000000", json=fields), _sample("00000001", json=fields))

    images, problems = _read(shard)

    assert images == [("00000000.jpg", label), ("00000001.jpg", label)]
    assert not problems


def test_a_pack_of_vit21k_gives_all_labels() -> None:
    fields = {"label": 0, "labels": [0, 3], "wnids": ["n01", "n02"], "filename": "n01/1.JPEG"}
    none = {"label": -1, "labels": [], "wnids": [], "filename": "x/2.JPEG"}

    images, _ = _read(_shard(_sample("n01/1", json=fields), _sample("x/2", json=none)))

    assert images == [("1.jpg", ("n01", "n02")), ("2.jpg", None)]


def test_the_content_is_that_of_the_member_and_the_offset_is_where_it_is() -> None:
    shard = _shard(*(_sample(f"{n:08}", cls=b"dog", txt=b"x" * 3000) for n in range(50)))
    whole = shard.getvalue()
    labels = LabelOptions(label_from="cls")

    for item in read_webdataset(shard, SHARD, labels):
        assert isinstance(item, ContainerImage)
        key = item.path.removeprefix(f"{SHARD}/").removesuffix(".jpg")
        assert bytes(item.content) == JPEG + key.encode()
        assert whole[item.offset : item.offset + item.num_bytes] == item.content
        assert (item.split, item.storage) == ("train", None)


def test_a_label_that_is_far_behind_its_image_is_read() -> None:
    """The image is no longer in the window then, and is read again."""
    big = {"txt": b"x" * 900_000, "npy": b"y" * 900_000, "json": {"class_name": "dog"}}
    shard = _shard(_sample("1", **big), _sample("2", **big))
    labels = LabelOptions(label_from="json:class_name")
    contents = [
        bytes(item.content)
        for item in read_webdataset(shard, SHARD, labels)
        if isinstance(item, ContainerImage)
    ]
    assert contents == [JPEG + b"1", JPEG + b"2"]


@pytest.mark.parametrize("key", ["n02085620_17", "n02085620/17", "deep/n02085620_17"])
def test_a_wordnet_id_in_the_key_is_the_class(key: str) -> None:
    images, _ = _read(_shard(_sample(key, cls=b"3"), _sample("n02085621_3", cls=b"4")))
    assert [label for _, label in images] == ["n02085620", "n02085621"]


def test_a_text_in_cls_is_the_class() -> None:
    assert _read(_shard(_sample("1", cls=b"dog\n")))[0] == [("1.jpg", "dog")]


def test_indices_need_a_class_list() -> None:
    shard = _shard(_sample("1", cls=b"1", json={"label": 1}))
    with pytest.raises(LayoutError, match="class indices without class names") as caught:
        _read(shard)
    assert "--classes LIST" in (caught.value.hint or "")
    assert "--label-from" in (caught.value.hint or "")

    images, _ = _read(shard, LabelOptions(class_names=("cat", "dog")))
    assert images == [("1.jpg", "dog")]


def test_given_classes_come_before_names() -> None:
    shard = _shard(_sample("1", cls=b"1", json={"class_name": "Canis"}))
    assert _read(shard, LabelOptions(class_names=("cat", "dog")))[0] == [("1.jpg", "Canis")]
    given = LabelOptions(class_names=("cat", "dog"), are_classes_given=True)
    assert _read(shard, given)[0] == [("1.jpg", "dog")]


@pytest.mark.parametrize(
    "sample",
    [
        _sample("n02085620_1", json={"class_name": "n02085621"}),
        _sample("1", json={"class_name": "n02085621", "filename": "n02085620/1.JPEG"}),
        _sample("1", json={"wnid": "n02085621", "class_name": "n02085620"}),
    ],
)
def test_contradictory_labels_are_refused_unless_one_is_selected(
    sample: Mapping[str, bytes],
) -> None:
    with pytest.raises(LayoutError, match=r"n0208562[01], .* is n0208562[01]") as caught:
        _read(_shard(sample))
    assert "--label-from" in (caught.value.hint or "")

    images, _ = _read(_shard(sample), LabelOptions(label_from="json:class_name"))
    assert images[0][1] in {"n02085621", "n02085620"}


def test_contradictory_indices_are_refused() -> None:
    labels = LabelOptions(class_names=("cat", "dog"))
    with pytest.raises(LayoutError, match=r"is 1, .* is 0"):
        _read(_shard(_sample("1", cls=b"1", json={"label": 0})), labels)


def test_labels_without_any_meaning_are_refused() -> None:
    with pytest.raises(LayoutError, match="without a class") as caught:
        _read(_shard(_sample("1", json={"caption": "a dog"}), _sample("2", txt=b"a cat")))
    assert "`json:caption`" in (caught.value.hint or "")


SELECTED = {
    "json:breed": "pug",
    "cls": "dog",
    "key": "x",
    "folder": "b",
    "parent": "a",
    "top": "imagenet12k-train-0000",
}


@pytest.mark.parametrize("label_from", SELECTED)
def test_the_label_may_be_selected(label_from: str) -> None:
    shard = _shard(_sample("a/b/x_1", json={"breed": "pug", "class_name": "q"}, cls=b"dog"))
    images, _ = _read(shard, LabelOptions(label_from=label_from))
    assert images == [("x_1.jpg", SELECTED[label_from])]


LATER: dict[str, dict[str, Any]] = {
    "no label": {},
    "malformed": {"json": b"{"},
    "not an object": {"json": b"[1]"},
    "too deep": {"json": b"[" * 100_000},
    "another field": {"json": {"caption": "x"}},
    "empty": {"json": {"class_name": ""}},
    "control characters": {"json": {"class_name": "a\0b"}},
    "of another type": {"json": {"class_name": {"x": 1}}},
    "a boolean": {"json": {"class_name": True}},
    "contradictory": {"json": {"class_name": "n02085620", "filename": "n02085621/1.JPEG"}},
}


@pytest.mark.parametrize("what", LATER)
def test_a_sample_without_a_clear_label_is_listed(what: str) -> None:
    good = [_sample(f"{n:03}", json={"class_name": "n02085620"}) for n in range(40)]
    images, problems = _read(_shard(*good, _sample("bad", **LATER[what])))
    assert len(images) == len(good)
    assert [(problem.path, problem.kind) for problem in problems] == [
        (f"{SHARD}/bad.jpg", ProblemKind.LABEL_MISSING)
    ]
    assert problems[0].detail


def test_several_images_of_a_key_are_listed_unless_one_is_selected() -> None:
    shard = _shard(_sample("1", png=b"\x89PNG", cls=b"dog"), _sample("2", cls=b"cat"))
    images, problems = _read(shard)
    assert images == [("2.jpg", "cat")]
    assert [problem.path[-5:] for problem in problems] == ["1.jpg", "1.png"]
    assert {problem.kind for problem in problems} == {ProblemKind.SEVERAL_IMAGES}

    images, problems = _read(shard, LabelOptions(image_column="jpg"))
    assert images == [("1.jpg", "dog"), ("2.jpg", "cat")]
    assert not problems


@pytest.mark.parametrize("suffix", ["JPEG", "png", "webp", "jpeg", "WEBP", "tiff", "bmp", "gif"])
def test_images_of_all_suffixes_are_read(suffix: str) -> None:
    images, _ = _read(_shard({f"1.{suffix}": JPEG, "1.cls": b"dog"}))
    assert images == [(f"1.{suffix}", "dog")]


def test_what_is_no_image_is_skipped() -> None:
    files = {"1.cls": b"a", "1.mp4": b"x", ".hidden.jpg": JPEG, "README": b"", "a/.b/c.jpg": JPEG}
    _, problems = _read(_shard(_sample("0", cls=b"dog"), files))
    assert {(problem.path.rpartition("/")[2], problem.kind) for problem in problems} == {
        (".hidden.jpg", ProblemKind.HIDDEN),
        ("c.jpg", ProblemKind.HIDDEN),
        ("README", ProblemKind.OTHER_SUFFIX),
        ("1.cls", ProblemKind.OTHER_SUFFIX),
        ("1.mp4", ProblemKind.OTHER_SUFFIX),
    }


def test_a_member_that_is_there_twice_counts_once() -> None:
    pairs = [("1.jpg", JPEG + b"old"), ("1.cls", b"a"), ("1.jpg", JPEG + b"new"), ("1.cls", b"b")]
    items = list(read_webdataset(io.BytesIO(tar_of(pairs)), SHARD, LabelOptions(label_from="cls")))
    images = [item for item in items if isinstance(item, ContainerImage)]
    assert [(bytes(image.content), image.label) for image in images] == [(JPEG + b"new", "b")]
    kinds = [item.kind for item in items if isinstance(item, Problem)]
    assert kinds == [ProblemKind.DUPLICATE_MEMBER] * 2


@pytest.mark.parametrize("num_listed", [2, 4])
def test_a_shard_with_another_number_of_images_than_listed_is_listed(num_listed: int) -> None:
    shard = _shard(*(_sample(f"{n}", cls=b"dog") for n in range(3)))
    images, [problem] = _read(shard, num_images=num_listed, split="validation")
    assert len(images) == 3
    assert problem == Problem(SHARD, ProblemKind.SHARD_DIFFERS, f"has 3 of {num_listed} images")


@pytest.mark.parametrize("num_blocks", range(1, 14))
def test_a_truncated_shard_is_listed(num_blocks: int) -> None:
    whole = _shard(*(_sample(f"{n}", cls=b"dog") for n in range(3))).getvalue()
    labels = LabelOptions(label_from="cls")
    items = list(read_webdataset(io.BytesIO(whole[: 512 * num_blocks - 100]), SHARD, labels))
    kinds = {item.kind for item in items if isinstance(item, Problem)}
    assert ProblemKind.ARCHIVE_TRUNCATED in kinds
    for item in items:
        if isinstance(item, ContainerImage):
            assert item.label == "dog"
