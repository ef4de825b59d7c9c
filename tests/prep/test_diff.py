"""`prep.diff`: two folders of manifests, compared by content; a plain comparison is the oracle."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vit21k.errors import DataError
from vit21k.prep.dedup import find_rows
from vit21k.prep.diff import Difference, DiffSummary, diff_manifests
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val


def _prepare(
    folder: Path, files: dict[str, bytes], *, per_class: int = 0, holdout: bool = False
) -> Path:
    for name, content in files.items():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    hash_tree(folder / "tree", folder / "m")
    relabel(folder / "m")
    if per_class:
        make_val(folder / "m", per_class=per_class, holdout=holdout)
    return folder / "m"


def _diff(before: Path, after: Path) -> tuple[DiffSummary, list[Difference]]:
    summary, differences = diff_manifests(before, after)
    return summary, list(differences)


FILES = {"n1/a.jpg": b"a", "n1/b.jpg": b"b", "n2/c.jpg": b"c", "n2/a.jpg": b"a"}


def test_the_same_images_under_other_names_are_the_same(tmp_path: Path) -> None:
    renamed = {f"{name[:3]}x{name[3:]}": content for name, content in FILES.items()}
    before = _prepare(tmp_path / "1", FILES)
    after = _prepare(tmp_path / "2", renamed)

    summary, differences = _diff(before, after)

    assert summary.is_same
    assert (summary.num_before, summary.num_after, summary.num_same) == (3, 3, 3)
    assert not differences


def test_what_was_added_removed_and_labelled_anew_is_reported(tmp_path: Path) -> None:
    before = _prepare(tmp_path / "1", FILES)
    others = {"n0/z.jpg": b"z", "n1/a.jpg": b"a", "n2/c.jpg": b"c", "n3/c.jpg": b"c"}
    after = _prepare(tmp_path / "2", others)

    summary, differences = _diff(before, after)

    assert {(each.change, each.path, *each.before, "->", *each.after) for each in differences} == {
        ("added", "n0/z.jpg", "->", "n0"),
        ("relabelled", "n1/a.jpg", "n1", "n2", "->", "n1"),
        ("relabelled", "n2/c.jpg", "n2", "->", "n2", "n3"),
        ("removed", "n1/b.jpg", "n1", "->"),
    }
    assert summary.num_changes == {"added": 1, "removed": 1, "relabelled": 2, "moved": 0}
    assert summary.classes_added == ["n0", "n3"]
    assert not summary.is_same


def test_an_image_in_another_split_has_moved(tmp_path: Path) -> None:
    files = {f"n1/{number}.jpg": bytes([number]) for number in range(5)}
    before = _prepare(tmp_path / "1", files, per_class=1, holdout=True)
    after = _prepare(tmp_path / "2", files, per_class=2, holdout=True)

    summary, [moved] = _diff(before, after)

    assert summary.has_splits
    assert (moved.change, moved.path, moved.before, moved.after) == (
        "moved",
        "n1/1.jpg",
        ["train"],
        ["val"],
    )


def test_a_folder_without_a_split_is_compared_without(tmp_path: Path) -> None:
    before = _prepare(tmp_path / "1", FILES)
    after = _prepare(tmp_path / "2", FILES, per_class=1)

    summary, _ = _diff(before, after)

    assert not summary.has_splits
    assert summary.is_same


def test_other_digests_cannot_be_compared(tmp_path: Path) -> None:
    before = _prepare(tmp_path / "1", FILES)
    hash_tree(tmp_path / "1" / "tree", tmp_path / "2", algorithm="md5")
    relabel(tmp_path / "2")

    with pytest.raises(DataError, match="cannot be compared"):
        _diff(before, tmp_path / "2")


KEYS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True, max_size=16)


@given(KEYS, KEYS)
@settings(max_examples=200)
def test_rows_are_found_as_by_a_dictionary(
    wanted: list[tuple[int, int]], among: list[tuple[int, int]]
) -> None:
    rows = find_rows(_digests(wanted), _digests(among))

    row_of = {key: row for row, key in enumerate(among)}
    assert rows.tolist() == [row_of.get(key, -1) for key in wanted]


def _digests(keys: list[tuple[int, int]]) -> NDArray[np.uint64]:
    return np.array(keys, dtype=np.uint64).reshape(-1, 2) << np.uint64(62)
