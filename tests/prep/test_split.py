"""`prep.split`: which images go to val, and what stays in train."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader, open_manifest, read_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer, write_manifest
from vit21k.prep.diff import diff_manifests
from vit21k.prep.split import SplitSummary, keyed_hash, make_val

WNIDS = ("n00000001", "n00000002", "n00000003")

# The labels of each image, in images order.
labels_strategy = st.lists(
    st.sets(st.integers(0, 2), min_size=1, max_size=3).map(sorted), min_size=1, max_size=40
).map(lambda images: sorted(images, key=lambda labels: labels[0]))

Rows = list[dict[str, Any]]


def _digest(number: int) -> bytes:
    return np.random.default_rng(number).bytes(16)


def _images(labels: Sequence[list[int]], numbers: Sequence[int] | None = None) -> Rows:
    return [
        {
            "digest": _digest(number),
            "path": f"{WNIDS[label_ids[0]]}/{number:03}.JPEG",
            "num_bytes": None if number % 3 else number,
            "label_ids": label_ids,
            "num_files": 1,
            "container": None if number % 2 else "n1.tar",
            "offset": None if number % 2 else 512 * number,
            "storage": None if number % 4 else "deflate",
            "source_split": None,
        }
        for number, label_ids in zip(numbers or range(len(labels)), labels, strict=True)
    ]


def _write_images(folder: Path, rows: Rows) -> None:
    classes = ClassList(WNIDS)
    header = ManifestHeader(algorithm="md5", root="/nowhere", classes=classes.fingerprint)
    table = pa.Table.from_pylist(rows, schema=IMAGES.schema)
    write_manifest(table, IMAGES, folder, header, classes)


def _split(rows: Rows, **options: Any) -> tuple[Rows, Rows, SplitSummary]:
    with TemporaryDirectory() as name:
        _write_images(Path(name), rows)
        summary = make_val(Path(name), **options)
        train, val = (read_manifest(Path(name), kind).to_pylist() for kind in (TRAIN, VAL))
        return train, val, summary


@pytest.mark.parametrize("holdout", [False, True])
def test_manifests_in_which_a_merge_was_split_are_refused(tmp_path: Path, holdout: bool) -> None:
    rows = _images([[0], [1], [2]], numbers=[1, 2, 1])
    classes = ClassList(WNIDS)
    options = {"labels": [{"verb": "apply"}]}
    header = ManifestHeader(
        algorithm="md5", root="/nowhere", classes=classes.fingerprint, options=options
    )
    table = pa.Table.from_pylist(rows, schema=IMAGES.schema)
    with manifest_writer(IMAGES, tmp_path, header, classes, is_distinct=True) as writer:
        writer.write(table)  # as an earlier version did

    with pytest.raises(
        ManifestError, match=f"have the digest {_digest(1).hex()}: it must be unique"
    ):
        make_val(tmp_path, per_class=1, holdout=holdout, seed=2)
    with pytest.raises(ManifestError, match="it must be unique"):
        diff_manifests(tmp_path, tmp_path)
    assert not (tmp_path / TRAIN.file_name).exists()


def _without_counts(rows: Rows) -> Rows:
    return [{name: row[name] for name in TRAIN.schema.names} for row in rows]


@settings(max_examples=40)
@given(labels_strategy, st.sampled_from([1, 2, 3, 4, 10**20]))
def test_val_is_the_first_single_label_images_of_each_class(
    labels: list[list[int]], per_class: int
) -> None:
    rows = _images(labels)
    expected, num_taken = [], Counter[int]()
    for row in rows:
        if len(row["label_ids"]) == 1 and num_taken[row["label_ids"][0]] < per_class:
            num_taken[row["label_ids"][0]] += 1
            expected.append(row)

    train, val, summary = _split(rows, per_class=per_class)

    assert val == _without_counts(expected)
    assert train == _without_counts(rows)
    assert (summary.num_images, summary.num_train, summary.num_val) == (
        len(rows),
        len(rows),
        len(val),
    )


@settings(max_examples=40)
@given(labels_strategy, st.integers(1, 4), st.none() | st.integers(0, 2**64 - 1))
def test_holdout_parts_the_images_in_two(
    labels: list[list[int]], per_class: int, seed: int | None
) -> None:
    rows = _images(labels)

    train, val, summary = _split(rows, per_class=per_class, seed=seed, holdout=True)

    digests = [row["digest"] for row in rows]
    parts = {row["digest"] for row in train}, {row["digest"] for row in val}
    assert parts[0] | parts[1] == set(digests)
    assert not parts[0] & parts[1]
    assert [row["digest"] for row in train] == [d for d in digests if d in parts[0]]
    assert [row["digest"] for row in val] == [d for d in digests if d in parts[1]]
    assert summary.num_train + summary.num_val == summary.num_images


@settings(max_examples=40)
@given(labels_strategy, st.integers(1, 4), st.integers(0, 2**64 - 1))
def test_a_seed_takes_the_lowest_hashes_of_each_class(
    labels: list[list[int]], per_class: int, seed: int
) -> None:
    rows = _images(labels)
    numbers = [np.frombuffer(row["digest"], dtype="<u8") for row in rows]
    score = dict(
        zip((row["digest"] for row in rows), keyed_hash(np.array(numbers), seed), strict=True)
    )
    of_class = defaultdict(list)
    for row in rows:
        if len(row["label_ids"]) == 1:
            of_class[row["label_ids"][0]].append(row["digest"])
    expected = {d for ds in of_class.values() for d in sorted(ds, key=score.get)[:per_class]}

    _, val, _ = _split(rows, per_class=per_class, seed=seed)

    assert {row["digest"] for row in val} == expected


@settings(max_examples=30)
@given(labels_strategy, labels_strategy, st.integers(0, 5))
def test_images_of_other_classes_move_nothing(
    labels: list[list[int]], others: list[list[int]], seed: int
) -> None:
    rows = _images(labels)
    others = [[2]] * len(others)
    more = _images(others, range(1000, 1000 + len(others)))
    both = sorted(rows + more, key=lambda row: row["label_ids"][0])

    def chosen(rows: Rows) -> set[bytes]:
        _, val, _ = _split(rows, per_class=2, seed=seed)
        return {row["digest"] for row in val if row["label_ids"] != [2]}

    assert chosen(both) == chosen(rows)


def test_another_seed_is_another_draw() -> None:
    rows = _images([[0]] * 100)

    draws = [{row["digest"] for row in _split(rows, per_class=20, seed=s)[1]} for s in (0, 1, 2)]

    assert len({frozenset(draw) for draw in draws}) == 3
    assert all(len(draw) == 20 for draw in draws)


def test_every_image_is_drawn_about_equally_often() -> None:
    digests = np.random.default_rng(0).integers(0, 2**64, (50, 2), dtype=np.uint64)

    drawn = Counter(
        row for seed in range(2000) for row in np.argsort(keyed_hash(digests, seed))[:10].tolist()
    )

    # Binomial(2000, 0.2): mean 400, standard deviation 17.9; 5 of them either way.
    assert min(drawn.values()) > 310
    assert max(drawn.values()) < 490
    assert len(drawn) == 50


def test_the_keyed_hash_does_not_change_between_releases() -> None:
    # A seed stands for a split: these values may never change.
    digests = np.array([[0, 0], [1, 2]], dtype=np.uint64)

    assert keyed_hash(digests, 0).tolist() == [3746585686858627171, 7458765686753164422]
    assert keyed_hash(digests, 2**64 - 1).tolist() == [1702081318012823930, 6102141007488897455]


def test_classes_with_too_few_single_label_images_are_named() -> None:
    _, val, summary = _split(_images([[0], [0], [0, 1], [1]]), per_class=2)

    assert summary.short_classes == {"n00000002": 1, "n00000003": 0}
    assert [row["label_ids"] for row in val] == [[0], [0], [1]]


def test_classes_that_a_holdout_leaves_bare_are_named() -> None:
    rows = _images([[0], [0], [0, 1], [1], [2]])

    _, _, held_out = _split(rows, per_class=2, holdout=True)
    _, _, dummy = _split(rows, per_class=2)

    assert held_out.classes_without_train == ["n00000003"]
    assert dummy.classes_without_train == []


@pytest.mark.parametrize("row_group_rows", [1, 3, 1000])
def test_row_groups_do_not_matter(monkeypatch: pytest.MonkeyPatch, row_group_rows: int) -> None:
    rows = _images([[0]] * 5 + [[0, 2]] + [[1]] * 5 + [[2]] * 3)
    expected = _split(rows, per_class=3, seed=1, holdout=True)
    monkeypatch.setattr("vit21k.manifest.writer.ROW_GROUP_ROWS", row_group_rows)

    assert _split(rows, per_class=3, seed=1, holdout=True) == expected


@pytest.mark.parametrize(("holdout", "split"), [(True, "holdout"), (False, "dummy")])
def test_headers_say_which_split_it_is(tmp_path: Path, *, holdout: bool, split: str) -> None:
    _write_images(tmp_path, _images([[0], [1]]))

    make_val(tmp_path, per_class=5, holdout=holdout, seed=7)

    images, val, train = (open_manifest(tmp_path, kind) for kind in (IMAGES, VAL, TRAIN))
    options = {"split": split, "per_class": 5, "seed": 7}
    assert val.header.options == train.header.options == options
    assert val.header.inputs == {"images": images.fingerprint}
    assert train.header.inputs == {"images": images.fingerprint, "val": val.fingerprint}
    assert val.classes() == train.classes() == ClassList(WNIDS)
    assert val.header.classes == ClassList(WNIDS).fingerprint


def test_train_and_val_of_two_runs_do_not_go_together(tmp_path: Path) -> None:
    _write_images(tmp_path, _images([[0], [0], [1]]))
    make_val(tmp_path, per_class=1, holdout=True)
    train = (tmp_path / "train.parquet").read_bytes()
    make_val(tmp_path, per_class=2, holdout=True)
    (tmp_path / "train.parquet").write_bytes(train)

    with pytest.raises(ManifestError, match=r"stale: `val.parquet` has changed"):
        open_manifest(tmp_path, TRAIN)


def test_missing_images_are_refused_with_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no images manifest") as caught:
        make_val(tmp_path)

    assert "vit21k relabel" in (caught.value.hint or "")
