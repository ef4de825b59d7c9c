"""Hashing of WebDatasets: rows, labels, splits, problems, the cache; equal for any threads."""

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTree
from tar_files import tar_of

from vit21k.errors import LayoutError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, IMAGES, PROBLEMS
from vit21k.prep import hash_containers
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.shards import Shard, merge_shards
from vit21k.prep.verify import verify
from vit21k.sources.read import ImageReader, Locator

JPEG = b"\xff\xd8\xff"
CLASSES = ("n01440764", "n01443537", "n01484850")


def _shard(samples: Mapping[str, Any]) -> bytes:
    """Return a shard of an image and a `.json` for each of *samples*: its fields by key."""
    files: dict[str, bytes] = {}
    for key, fields in samples.items():
        files[f"{key}.jpg"] = JPEG + key.encode()
        files[f"{key}.json"] = json.dumps(fields).encode()
    return tar_of(files)


def _web_dataset(num_shards: int = 3, num_samples: int = 5) -> dict[str, bytes]:
    """Return shards of timm's form, whose keys are not in the order of their names."""
    files = {}
    for shard in range(num_shards):
        keys = [f"{shard * num_samples + n:08}" for n in reversed(range(num_samples))]
        samples = {
            key: {"class_name": CLASSES[int(key) % 3], "label": int(key) % 3} for key in keys
        }
        split = "train" if shard else "validation"
        files[f"imagenet22k-{split}-{shard:04}.tar"] = _shard(samples)
    return files


def _rows(manifests: Path) -> list[dict[str, Any]]:
    columns = ["path", "wnid", "container", "offset", "num_bytes", "storage", "source_split"]
    rows: list[dict[str, Any]] = read_manifest(manifests, DIGESTS, columns).to_pylist()
    return rows


def test_shards_are_hashed_in_path_order_with_labels_splits_and_offsets(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree(_web_dataset())
    found = []

    summary = hash_tree(root, tmp_path / "m", on_layout=lambda layout: found.append(layout.line))

    rows = _rows(tmp_path / "m")
    assert found == ["layout: WebDataset, 3 shards; class from the .json field `class_name`"]
    assert summary.wnids == set(CLASSES)
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert len(rows) == summary.num_files == 15
    reader = ImageReader(root)
    for row in rows:
        key = row["path"].rpartition("/")[2].removesuffix(".jpg")
        assert row["wnid"] == CLASSES[int(key) % 3]
        assert row["source_split"] == row["container"].split("-")[1]
        fields = {name: row[name] for name in Locator._fields}
        assert reader.read(**fields) == JPEG + key.encode()
    options = open_manifest(tmp_path / "m", DIGESTS).header.options
    assert (options["layout"], options["label_from"]) == ("webdataset", "json:class_name")


def test_the_manifests_do_not_depend_on_threads_or_the_size_of_runs(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(_web_dataset(num_samples=20))
    hash_tree(root, tmp_path / "one", num_workers=1)
    monkeypatch.setattr(hash_containers, "_RUN_ROWS", 7)
    monkeypatch.setattr(hash_containers, "_PIECE_ROWS", 3)
    monkeypatch.setattr(hash_containers, "_CHUNK_ROWS", 4)
    hash_tree(root, tmp_path / "many", num_workers=4)

    for kind in (DIGESTS, PROBLEMS):
        one, many = (tmp_path / name / kind.file_name for name in ("one", "many"))
        assert one.read_bytes() == many.read_bytes()


def test_shards_of_machines_merge_to_the_same_manifest(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree(_web_dataset())
    hash_tree(root, tmp_path / "whole")
    for number in (1, 2):
        hash_tree(root, tmp_path / "m", shard=Shard(number, 2))

    merge_shards([Shard(n, 2).folder(tmp_path / "m") for n in (1, 2)], tmp_path / "merged")

    assert _rows(tmp_path / "merged") == _rows(tmp_path / "whole")


def test_several_labels_are_a_row_each_and_merge_to_one_image(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    samples = {"a": {"wnids": ["n2", "n1"]}, "b": {"wnids": ["n1"]}, "c": {"wnids": []}}
    summary = hash_tree(make_tree({"p-train-0.tar": _shard(samples)}), tmp_path / "m")
    relabel(tmp_path / "m")

    assert [(row["path"][-5:], row["wnid"]) for row in _rows(tmp_path / "m")] == [
        ("a.jpg", "n1"),
        ("a.jpg", "n2"),
        ("b.jpg", "n1"),
    ]
    images = read_manifest(tmp_path / "m", IMAGES, ["path", "label_ids"]).to_pylist()
    assert [(row["path"][-5:], row["label_ids"]) for row in images] == [
        ("a.jpg", [0, 1]),
        ("b.jpg", [0]),
    ]
    assert {str(kind): count for kind, count in summary.problems.items()} == {"unlabelled": 1}


def test_unchanged_shards_are_not_read_again(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree(_web_dataset())
    for path in root.iterdir():  # old enough to be sure that they have not changed since
        os.utime(path, ns=(10**18, 10**18))
    hash_tree(root, tmp_path / "m", is_fresh=True)
    first = (tmp_path / "m" / DIGESTS.file_name).read_bytes()
    summary = _after_settling(root, tmp_path / "m")

    assert (tmp_path / "m" / DIGESTS.file_name).read_bytes() == first
    assert (summary.num_known, summary.num_bytes_read) == (15, 0)

    rechecked = hash_tree(root, tmp_path / "m", recheck=1.0)
    assert (rechecked.num_known, rechecked.silently_changed) == (0, [])

    by_index = hash_tree(root, tmp_path / "m", label_from="json:label", class_names=["x", "y", "z"])
    assert by_index.wnids == {"x", "y", "z"}


def _after_settling(root: Path, manifests: Path) -> Any:
    """Hash until the clock has moved on since the files were made."""
    summary = hash_tree(root, manifests)
    while summary.num_known < summary.num_files:
        summary = hash_tree(root, manifests)
    return summary


def test_the_last_of_two_members_of_one_name_counts(make_tree: MakeTree, tmp_path: Path) -> None:
    pairs = [
        ("a.jpg", JPEG + b"old"), ("a.cls", b"n1"), ("b.jpg", JPEG), ("b.cls", b"n1"),
        ("a.jpg", JPEG + b"newer"), ("a.cls", b"n2"),
    ]  # fmt: skip
    hash_tree(make_tree({"s.tar": tar_of(pairs)}), tmp_path / "m")

    rows = _rows(tmp_path / "m")
    assert [(row["wnid"], row["num_bytes"]) for row in rows] == [("n2", 8), ("n1", 3)]
    problems = read_manifest(tmp_path / "m", PROBLEMS, ["path", "kind"]).to_pylist()
    assert problems == [{"path": "s.tar/a.jpg", "kind": "duplicate_member"}]


@pytest.mark.parametrize("name", ["_info.json", "info.json"])
def test_what_info_says_is_compared_with_the_shards(
    name: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    shard = _shard({"a": {"label": 1}, "b": {"label": 0}})
    of_label = {"filenames": ["s/x0.tar"], "shard_lengths": [1], "alt_label": "label_12k"}
    info = {
        "class_names": ["cat", "dog"],
        "splits": {"val": {**of_label, "shard_lengths": [3], "alt_label": None}, "x": of_label},
    }
    files = {"in/s/x0.tar": shard, f"in/{name}": json.dumps(info).encode()}
    hash_tree(make_tree(files), tmp_path / "m")

    rows = _rows(tmp_path / "m")
    assert [(row["wnid"], row["source_split"]) for row in rows] == [
        ("dog", "validation"),
        ("cat", "validation"),
    ]
    problems = read_manifest(tmp_path / "m", PROBLEMS, ["path", "kind", "detail"]).to_pylist()
    shard_differs = {"kind": "shard_differs", "detail": "has 2 of 3 images"}
    assert {"path": "in/s/x0.tar", **shard_differs} in problems


def test_an_image_file_next_to_the_shards_gets_no_class(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree(_web_dataset(1) | {"assets/logo.png": b"\x89PNG"})
    summary = hash_tree(root, tmp_path / "m")
    assert summary.wnids == set(CLASSES)
    assert [str(kind) for kind in summary.problems] == ["label_missing"]


def test_a_shard_may_be_the_root(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree(_web_dataset())
    hash_tree(root / "imagenet22k-train-0001.tar", tmp_path / "m")
    assert {row["container"] for row in _rows(tmp_path / "m")} == {"imagenet22k-train-0001.tar"}


AMBIGUOUS: dict[str, Mapping[str, bytes]] = {
    "indices": {"x.tar": tar_of({"1.jpg": JPEG, "1.cls": b"3"})},
    "captions": {"x.tar": _shard({"1": {"caption": "a dog"}})},
    "shards that differ": {
        "a.tar": _shard({"1": {"class_name": "dog"}}),
        "b.tar": _shard({"1": {"label": "dog"}}),
    },
}


@pytest.mark.parametrize("what", AMBIGUOUS)
def test_an_ambiguous_web_dataset_is_refused(
    what: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError) as caught:
        hash_tree(make_tree(AMBIGUOUS[what]), tmp_path / "m")
    assert "--label-from" in (caught.value.hint or "")
    assert not list((tmp_path / "m").glob("*.parquet"))


def test_a_key_with_a_wordnet_id_is_enough(make_tree: MakeTree, tmp_path: Path) -> None:
    names = {f"{CLASSES[n % 3]}_{n}.JPEG": JPEG + b"%d" % n for n in range(9)}
    summary = hash_tree(make_tree({"shard-000.tar": tar_of(names)}), tmp_path / "m")
    assert summary.wnids == set(CLASSES)


def test_class_tars_are_not_shards(make_tree: MakeTree, tmp_path: Path) -> None:
    files = {
        f"{wnid}.tar": tar_of({f"{wnid}_1.JPEG": JPEG + wnid.encode(), f"{wnid}_1.json": b"{}"})
        for wnid in CLASSES
    }
    hash_tree(make_tree(files), tmp_path / "m")
    assert [row["path"] for row in _rows(tmp_path / "m")] == [
        f"{wnid}/{wnid}_1.JPEG" for wnid in CLASSES
    ]


@pytest.mark.parametrize("classes", [None, ["x", "y", "z"]])
def test_verify_reads_shards_again(
    classes: list[str] | None, make_tree: MakeTree, tmp_path: Path
) -> None:
    samples = {"a": {"wnids": ["n2", "n1"]}, "b": {"wnids": ["n1"]}, "c": {"wnids": []}}
    files = {"p.tar": _shard(samples)} if classes is None else _web_dataset()
    root = make_tree(files)
    label_from = "json:label" if classes else None
    hash_tree(root, tmp_path / "m", label_from=label_from, class_names=classes)

    summary = verify(tmp_path / "m")
    assert (summary.is_same, summary.num_files) == (True, 15 if classes else 2)

    path = min(root.iterdir())
    path.write_bytes(path.read_bytes().replace(JPEG, b"\xff\xd8\xfe", 1))
    changed = verify(tmp_path / "m")
    assert (changed.is_same, changed.num_different) == (False, 1)


@pytest.mark.parametrize("suffix", ["tar.gz", "tgz"])
def test_compressed_shards_are_read_in_their_stream(
    suffix: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    shards = {
        name.replace(".tar", f".{suffix}"): gzip.compress(content)
        for name, content in _web_dataset().items()
    }
    root = make_tree(shards)
    summary = hash_tree(root, tmp_path / "m")

    assert (summary.wnids, summary.num_files) == (set(CLASSES), 15)
    assert verify(tmp_path / "m").is_same
    reader = ImageReader(root)
    for row in _rows(tmp_path / "m"):
        key = row["path"].rpartition("/")[2].removesuffix(".jpg")
        assert row["storage"] == "gzip"
        fields = {name: row[name] for name in Locator._fields}
        assert reader.read(**fields) == JPEG + key.encode()


def test_a_damaged_stream_is_listed(make_tree: MakeTree, tmp_path: Path) -> None:
    whole = gzip.compress(_web_dataset(1)["imagenet22k-validation-0000.tar"])
    files = {"a.tar.gz": whole[:-40], "b.tar.gz": whole}
    hash_tree(make_tree(files), tmp_path / "m", layout="webdataset")
    problems = read_manifest(tmp_path / "m", PROBLEMS, ["path", "kind"]).to_pylist()
    assert {"path": "a.tar.gz", "kind": "archive_truncated"} in problems
    assert {row["container"] for row in _rows(tmp_path / "m")} >= {"b.tar.gz"}


def test_manifests_may_be_next_to_an_archive_that_is_hashed_alone(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {f"{wnid}/{number}.jpg": JPEG + wnid.encode() for wnid in "ab" for number in (1, 2)}
    folder = make_tree({"x.tar": tar_of(files)})

    hash_tree(folder / "x.tar", folder / "m")
    relabel(folder / "m")

    assert open_manifest(folder / "m", IMAGES).num_rows == 2
    assert verify(folder / "m").is_same
    with pytest.raises(UsageError, match="is inside the image root"):
        hash_tree(folder, folder / "m")


BY_PATH: dict[str, tuple[Mapping[str, bytes], list[str], int]] = {
    "key": (
        {"n01440764_1.JPEG": JPEG, "all/n01443537_2.JPEG": JPEG + b"2", "all/3.JPEG": JPEG + b"3"},
        ["n01440764", "n01443537"],
        1,
    ),
    "parent": (
        {"cat/a/1.JPEG": JPEG, "dog/b/2.JPEG": JPEG + b"2", "c/3.JPEG": JPEG + b"3"},
        ["cat", "dog"],
        1,
    ),
    "top": ({"cat/a/1.JPEG": JPEG, "dog/b/c/2.JPEG": JPEG + b"2"}, ["cat", "dog"], 0),
}


@pytest.mark.parametrize("label_from", BY_PATH)
@pytest.mark.parametrize("is_tar", [False, True])
def test_the_class_of_a_file_may_be_another_part_of_its_path(
    label_from: str, is_tar: bool, make_tree: MakeTree, tmp_path: Path
) -> None:
    files, classes, num_missing = BY_PATH[label_from]
    root = make_tree({"x.tar": tar_of(files)}) / "x.tar" if is_tar else make_tree(files)

    summary = hash_tree(root, tmp_path / "m", label_from=label_from)

    assert sorted(summary.wnids) == classes
    assert summary.problems[ProblemKind.LABEL_MISSING] == num_missing
    assert verify(tmp_path / "m").is_same
