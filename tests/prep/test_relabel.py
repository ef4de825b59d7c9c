"""`prep.relabel`: one row per image, with the labels of all its files."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.errors import DataError, ManifestError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader, open_manifest, read_manifest
from vit21k.manifest.schema import CLASSES, COPIES, DIGESTS, IMAGES, OVERLABELLED
from vit21k.manifest.writer import write_manifest
from vit21k.prep import relabel as relabel_module
from vit21k.prep.dedup import find_copies
from vit21k.prep.relabel import RelabelSummary, relabel

WNIDS = ("n00000001", "n00000002", "n00000003", "n00000004")

# (content, class) of each file; few contents, so that they collide.
files_strategy = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from(WNIDS)), min_size=1, max_size=40
)

File = tuple[int, str] | tuple[int, str, str | None]


def _digest(content: int) -> bytes:
    # Contents 4 to 7 share their first half with 0 to 3, which only a comparison in full tells.
    return bytes([content % 4]) * 8 + bytes([content // 4]) * 8


def _write_digests(folder: Path, files: Sequence[File], root: str = "/nowhere") -> None:
    rows = [
        {
            "path": f"{wnid}/{number:03}.JPEG",
            "wnid": wnid,
            "num_bytes": 10 * number,
            "mtime_ns": 0,
            "digest": _digest(content),
            "source_split": split[0] if split else None,
        }
        for number, (content, wnid, *split) in enumerate(files)
    ]
    header = ManifestHeader(algorithm="md5", root=root)
    write_manifest(pa.Table.from_pylist(rows, schema=DIGESTS.schema), DIGESTS, folder, header)


def _relabel(
    files: Sequence[File], **options: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]], RelabelSummary]:
    with TemporaryDirectory() as name:
        _write_digests(Path(name), files)
        summary = relabel(Path(name), **options)
        images, copies, classes = (
            read_manifest(Path(name), kind).to_pylist() for kind in (IMAGES, COPIES, CLASSES)
        )
        return images, copies, classes, summary


def _oracle(files: Sequence[File], wnids: Sequence[str]) -> list[dict[str, Any]]:
    images: dict[bytes, dict[str, Any]] = {}
    for number, (content, wnid) in enumerate(files):
        new = {
            "digest": _digest(content),
            "path": f"{wnid}/{number:03}.JPEG",
            "num_bytes": None,
            "label_ids": [],
            "num_files": 0,
            "container": None,
            "offset": None,
            "storage": None,
            "source_split": None,
        }
        image = images.setdefault(_digest(content), new)
        image["label_ids"] = sorted({*image["label_ids"], wnids.index(wnid)})
        image["num_files"] += 1
    return sorted(images.values(), key=lambda image: image["label_ids"][0])


def test_a_copy_that_is_held_out_holds_out_the_image() -> None:
    files: list[File] = [
        (1, "n00000001", "train"),
        (2, "n00000001", "train"),
        (3, "n00000001", None),
        (4, "n00000001", "validation"),
        (2, "n00000002", "validation"),
        (3, "n00000002", "train"),
        (4, "n00000002", "train"),
        (4, "n00000003", "test"),
    ]

    images, copies, _, _ = _relabel(files)

    assert [image["source_split"] for image in images] == ["train", "validation", "train", "test"]
    assert [copy["source_split"] for copy in copies] == ["validation", "train", "train", "test"]


def test_one_content_in_two_folders_is_one_image_with_two_labels() -> None:
    images, copies, _, summary = _relabel([(7, "n00000003"), (7, "n00000001")])

    assert images == [
        {
            "digest": _digest(7),
            "path": "n00000003/000.JPEG",  # the first in digests order, not the first by name
            "num_bytes": None,
            "label_ids": [0, 1],
            "num_files": 2,
            "container": None,
            "offset": None,
            "storage": None,
            "source_split": None,
        }
    ]
    assert [(copy["digest"], copy["path"], copy["wnid"]) for copy in copies] == [
        (_digest(7), "n00000001/001.JPEG", "n00000001")
    ]
    assert (summary.num_files, summary.num_images, summary.num_copies) == (2, 1, 1)
    assert summary.num_multi_label == 1


def test_one_content_twice_in_one_folder_is_one_label() -> None:
    images, copies, classes, summary = _relabel([(1, "n00000001"), (1, "n00000001")])

    assert [(row["label_ids"], row["num_files"]) for row in images] == [([0], 2)]
    assert len(copies) == 1
    assert summary.num_multi_label == 0
    assert [(row["num_files"], row["num_images"], row["num_single_label"]) for row in classes] == [
        (2, 1, 1)
    ]


@settings(max_examples=60)
@given(files_strategy)
def test_images_are_those_of_the_oracle(files: list[File]) -> None:
    wnids = sorted({wnid for _, wnid in files})

    images, _, _, _ = _relabel(files)

    assert images == _oracle(files, wnids)


@settings(max_examples=30)
@given(files_strategy, st.permutations(WNIDS))
def test_images_follow_the_class_list_that_is_given(files: list[File], wnids: list[str]) -> None:
    images, _, _, _ = _relabel(files, classes=ClassList(tuple(wnids)))

    assert images == _oracle(files, wnids)


@settings(max_examples=30)
@given(files_strategy)
def test_every_file_is_an_image_or_a_copy(files: list[File]) -> None:
    images, copies, _, summary = _relabel(files)

    paths = [row["path"] for row in images] + [row["path"] for row in copies]
    assert sorted(paths) == sorted(f"{w}/{i:03}.JPEG" for i, (_, w) in enumerate(files))
    assert [row["path"][-8:-5] for row in copies] == sorted(row["path"][-8:-5] for row in copies)
    assert sum(row["num_files"] for row in images) == len(files) == summary.num_files
    assert summary.num_copies == len(copies)


@settings(max_examples=30)
@given(files_strategy)
def test_classes_count_files_and_images(files: list[File]) -> None:
    images, _, classes, summary = _relabel(files, classes=ClassList(WNIDS))

    for index, row in enumerate(classes):
        labels = [image["label_ids"] for image in images]
        assert (row["class_index"], row["wnid"]) == (index, WNIDS[index])
        assert row["num_files"] == sum(wnid == WNIDS[index] for _, wnid in files)
        assert row["num_images"] == sum(index in ids for ids in labels)
        assert row["num_single_label"] == sum(ids == [index] for ids in labels)
    assert summary.num_classes_without_files == sum(row["num_files"] == 0 for row in classes)


@pytest.mark.parametrize("rows_in_memory", [1, 2, 3, 1000])
def test_the_number_of_rows_held_does_not_change_a_row(
    monkeypatch: pytest.MonkeyPatch, rows_in_memory: int
) -> None:
    files = [(number % 5, WNIDS[-number % 4]) for number in range(17)]  # not in class order
    monkeypatch.setattr(relabel_module, "ROWS_IN_MEMORY", rows_in_memory)

    images, copies, _, _ = _relabel(files)

    assert images == _oracle(files, WNIDS)
    assert len(copies) == 12


@pytest.mark.parametrize("is_sorted", [True, False])
def test_row_groups_do_not_matter(monkeypatch: pytest.MonkeyPatch, *, is_sorted: bool) -> None:
    rng = np.random.default_rng(0)
    draws = rng.integers(0, (8, 4), (50, 2)).tolist()
    files = [(content, WNIDS[index]) for content, index in draws]
    if is_sorted:
        files.sort(key=lambda file: file[1])
    monkeypatch.setattr("vit21k.manifest.writer.ROW_GROUP_ROWS", 7)

    images, _, _, _ = _relabel(files)

    assert images == _oracle(files, WNIDS)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_copies_are_the_rows_with_equal_digests(halves: list[tuple[int, int]]) -> None:
    digests = np.array(halves, dtype=np.uint64).reshape(-1, 2) * np.uint64(0x9E3779B97F4A7C15)

    groups = find_copies([digests[:9], digests[9:]], len(digests))

    expected: dict[tuple[int, int], list[int]] = {}
    for row, half in enumerate(halves):
        expected.setdefault(half, []).append(row)
    found = np.split(groups.rows_M, groups.starts_G[1:]) if len(groups.starts_G) else []
    assert [group.tolist() for group in found] == [
        rows for rows in expected.values() if len(rows) > 1
    ]


def test_a_folder_outside_the_class_list_is_refused_by_name(tmp_path: Path) -> None:
    _write_digests(tmp_path, [(1, "n00000003"), (2, "n00000002"), (3, "n00000001")])

    with pytest.raises(DataError, match="`n00000002` and 1 more folders are not in the class list"):
        relabel(tmp_path, classes=ClassList(("n00000001",)))
    assert not (tmp_path / "images.parquet").exists()


def test_classes_without_files_keep_their_index() -> None:
    images, _, classes, summary = _relabel([(1, "n00000003")], classes=ClassList(WNIDS))

    assert images[0]["label_ids"] == [2]
    assert [row["num_files"] for row in classes] == [0, 0, 1, 0]
    assert summary.num_classes == 4
    assert summary.num_classes_without_files == 3


def test_names_come_from_the_list_and_then_from_wordnet() -> None:
    classes = ClassList(("n01440764", "n01443537", "n00000003"), ("mine", None, None))

    _, _, rows, _ = _relabel([(1, "n01440764")], classes=classes)

    assert [row["name"] for row in rows] == ["mine", "goldfish, Carassius auratus", None]


def test_what_is_written_names_what_it_was_made_from(tmp_path: Path) -> None:
    _write_digests(tmp_path, [(1, "n00000003")])

    relabel(tmp_path)

    digests = open_manifest(tmp_path, DIGESTS)
    for kind in (IMAGES, COPIES, CLASSES):
        header = open_manifest(tmp_path, kind).header
        assert header.inputs == {"digests": digests.fingerprint}
        assert (header.algorithm, header.root) == ("md5", "/nowhere")
        assert header.classes == ClassList(("n00000003",)).fingerprint
    assert open_manifest(tmp_path, IMAGES).classes().wnids == ("n00000003",)


def test_relabelling_again_gives_the_same_bytes(tmp_path: Path) -> None:
    _write_digests(tmp_path, [(number % 3, WNIDS[number % 4]) for number in range(20)])
    relabel(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")}

    relabel(tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.parquet")} == first


def test_images_are_stale_once_digests_have_changed(tmp_path: Path) -> None:
    _write_digests(tmp_path, [(1, "n00000003")])
    relabel(tmp_path)
    _write_digests(tmp_path, [(2, "n00000003")])

    with pytest.raises(ManifestError, match="stale") as caught:
        open_manifest(tmp_path, IMAGES)

    assert "vit21k relabel" in (caught.value.hint or "")


def test_an_image_under_very_many_classes_is_counted() -> None:
    files = [(1, f"n{number:08}") for number in range(21)]
    files += [(2, f"n{number:08}") for number in range(20)]

    _, _, _, summary = _relabel(files)

    assert summary.num_overlabelled == 1


@settings(max_examples=30)
@given(files_strategy, st.integers(1, 3))
def test_overlabelled_images_can_be_skipped(files: list[File], max_labels: int) -> None:
    wnids = sorted({wnid for _, wnid in files})
    images = _oracle(files, wnids)
    kept = [image for image in images if len(image["label_ids"]) <= max_labels]

    with TemporaryDirectory() as name:
        _write_digests(Path(name), files)
        summary = relabel(Path(name), max_labels=max_labels)
        images, copies, overlabelled, classes = (
            read_manifest(Path(name), kind).to_pylist()
            for kind in (IMAGES, COPIES, OVERLABELLED, CLASSES)
        )

    digests = {image["digest"] for image in kept}
    assert images == kept
    assert all(row["digest"] in digests for row in copies)
    assert all(row["digest"] not in digests for row in overlabelled)
    assert len(images) + len(copies) + len(overlabelled) == len(files)
    assert (summary.num_copies, summary.num_overlabelled_files) == (len(copies), len(overlabelled))
    for index, row in enumerate(classes):
        assert row["num_images"] == sum(index in image["label_ids"] for image in kept)


def _rows_with_content(contents: Sequence[tuple[int, int | None, str]]) -> list[dict[str, Any]]:
    """Return rows of digests for (bytes, image's content or None, folder)."""
    return [
        {
            "path": f"{wnid}/{number:03}.JPEG",
            "wnid": wnid,
            "digest": _digest(content),
            "content_digest": None if image is None else _digest(1000 + image),
            "format": "png" if image is None else "jpeg",
        }
        for number, (content, image, wnid) in enumerate(contents)
    ]


def _relabel_rows(
    folder: Path, rows: list[dict[str, Any]], **options: Any
) -> list[list[dict[str, Any]]]:
    header = ManifestHeader(
        algorithm="xxh3_128", root="/nowhere", options=options.pop("header", {})
    )
    write_manifest(pa.Table.from_pylist(rows, schema=DIGESTS.schema), DIGESTS, folder, header)
    relabel(folder, **options)
    return [read_manifest(folder, kind).to_pylist() for kind in (IMAGES, COPIES)]


def test_copies_with_other_metadata_are_merged_by_content(tmp_path: Path) -> None:
    rows = _rows_with_content(
        [(1, 7, "n1"), (2, 7, "n2"), (3, None, "n2"), (3, None, "n3"), (4, 8, "n3"), (1, 7, "n3")]
    )

    images, copies = _relabel_rows(tmp_path, rows, by="content")

    assert [(row["digest"], row["label_ids"]) for row in images] == [
        (_digest(1), [0, 1, 2]),
        (_digest(3), [1, 2]),
        (_digest(4), [2]),
    ]
    assert [(row["digest"], row["path"]) for row in copies] == [
        (_digest(1), "n2/001.JPEG"),  # the image's digest, not the file's own
        (_digest(3), "n3/003.JPEG"),
        (_digest(1), "n3/005.JPEG"),
    ]
    assert open_manifest(tmp_path, IMAGES).header.options["by"] == "content"


def test_content_is_not_looked_at_unless_asked(tmp_path: Path) -> None:
    images, copies = _relabel_rows(tmp_path, _rows_with_content([(1, 7, "n1"), (2, 7, "n2")]))

    assert (len(images), copies) == (2, [])


def test_files_without_a_digest_are_images_of_their_own(tmp_path: Path) -> None:
    rows = _rows_with_content([(1, None, "n1"), (5, None, "n1"), (6, None, "n2"), (1, None, "n2")])
    rows[1]["digest"] = rows[2]["digest"] = None
    for number, row in enumerate(rows):
        row |= {"num_bytes": 9000, "probe": _digest(number)}

    images, copies = _relabel_rows(tmp_path, rows, header={"mode": "quick"})

    assert [(row["digest"], row["label_ids"]) for row in images] == [
        (_digest(1), [0, 1]),
        (None, [0]),
        (None, [1]),
    ]
    assert [row["path"] for row in copies] == ["n2/003.JPEG"]


@pytest.mark.parametrize(
    ("header", "words"), [({"mode": "quick"}, "quick run"), ({}, "was imported")]
)
def test_content_that_was_not_hashed_is_refused(
    tmp_path: Path, header: dict[str, str], words: str
) -> None:
    rows = _rows_with_content([(1, None, "n1")])
    rows[0]["format"] = None

    with pytest.raises(UsageError, match=words):
        _relabel_rows(tmp_path, rows, header=header, by="content")


def test_an_empty_list_of_files_is_refused(tmp_path: Path) -> None:
    _write_digests(tmp_path, [])

    with pytest.raises(DataError, match="lists no files") as caught:
        relabel(tmp_path)

    assert "problems.parquet" in (caught.value.hint or "")


def test_nothing_is_written_below_the_image_root(tmp_path: Path) -> None:
    _write_digests(tmp_path / "tree" / "m", [(1, "n00000003")], root=str(tmp_path / "tree"))

    with pytest.raises(UsageError, match="is inside the image root"):
        relabel(tmp_path / "tree" / "m")
