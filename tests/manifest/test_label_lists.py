"""`vit21k.labels.edit`: labels of many images at once, against sets one by one."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.labels.edit import LabelLists, hypernyms, renumbered, with_hypernyms, without_ancestors
from vit21k.manifest.classes import ClassList
from vit21k.manifest.wordnet import Hierarchy, load_synsets

# entity ... animal, chordate, vertebrate, mammal, placental, carnivore, canine, dog, hound, beagle
ANIMALS = ("n00015388", *load_synsets().ancestors("n02088364")[:9], "n02088364")
WNIDS = tuple(sorted({*ANIMALS, "n02121808", "n07747607", "n07747055", "n04409515"}))
HIERARCHY = Hierarchy.of(ClassList(WNIDS))
ABOVE = {w: set(load_synsets().ancestors(w)) & set(WNIDS) for w in WNIDS}

LABELS = st.lists(
    st.sets(st.integers(0, len(WNIDS) - 1), max_size=5).map(sorted), min_size=0, max_size=8
)


def _lists(labels: list[list[int]]) -> LabelLists:
    return LabelLists.from_arrow(pa.array(labels, pa.list_(pa.int64())))


def _ids(wnids: set[str]) -> list[int]:
    return sorted(WNIDS.index(wnid) for wnid in wnids)


def _above(labels: list[int]) -> set[str]:
    return set().union(*(ABOVE[WNIDS[label]] for label in labels))


@given(LABELS)
def test_lists_survive_arrow_in_any_slice(labels: list[list[int]]) -> None:
    array = pa.array([[7], *labels, [9]], pa.list_(pa.int64())).slice(1, len(labels))

    assert LabelLists.from_arrow(array).to_arrow().to_pylist() == labels
    assert _lists(labels).first_N().tolist() == [row[0] if row else -1 for row in labels]


@settings(max_examples=200)
@given(LABELS)
def test_hypernyms_are_what_is_above_the_labels_and_no_label(labels: list[list[int]]) -> None:
    lists = _lists(labels)
    names = [{WNIDS[label] for label in row} for row in labels]

    added = hypernyms(lists, HIERARCHY.ancestors).to_arrow().to_pylist()
    both = with_hypernyms(lists, HIERARCHY.ancestors).to_arrow().to_pylist()

    assert added == [_ids(_above(row) - own) for row, own in zip(labels, names, strict=True)]
    assert both == [_ids(_above(row) | own) for row, own in zip(labels, names, strict=True)]


@given(LABELS)
def test_a_label_is_dropped_if_another_is_its_hyponym(labels: list[list[int]]) -> None:
    reduced = without_ancestors(_lists(labels), HIERARCHY.ancestors).to_arrow().to_pylist()

    assert reduced == [_ids({WNIDS[label] for label in row} - _above(row)) for row in labels]


@given(LABELS)
def test_reducing_what_was_expanded_gives_what_reducing_gives(labels: list[list[int]]) -> None:
    ancestors = HIERARCHY.ancestors
    expanded = with_hypernyms(_lists(labels), ancestors)

    assert (
        without_ancestors(expanded, ancestors).to_arrow().to_pylist()
        == without_ancestors(_lists(labels), ancestors).to_arrow().to_pylist()
    )


@given(LABELS, st.permutations(range(len(WNIDS))), st.integers(0, len(WNIDS)))
def test_new_indices_are_ascending_and_dropped_labels_gone(
    labels: list[list[int]], permutation: list[int], num_dropped: int
) -> None:
    new_id_K = np.array(permutation)
    new_id_K[new_id_K < num_dropped] = -1

    result = renumbered(_lists(labels), new_id_K).to_arrow().to_pylist()

    assert result == [sorted(i for i in new_id_K[row].tolist() if i >= 0) for row in labels]


@given(LABELS, LABELS)
def test_changed_images_are_reported(old: list[list[int]], new: list[list[int]]) -> None:
    size = min(len(old), len(new))
    old, new = old[:size], new[:size]

    is_changed = _lists(old).is_changed_N(_lists(new)).tolist()

    assert is_changed == [one != other for one, other in zip(old, new, strict=True)]


@pytest.mark.parametrize("is_in", [[True, False, True], [False] * 3, [True] * 3])
def test_some_images_can_be_taken_out(is_in: list[bool]) -> None:
    labels = [[1, 2], [], [3]]

    taken = _lists(labels).of_rows(np.array(is_in)).to_arrow().to_pylist()

    assert taken == [row for row, chosen in zip(labels, is_in, strict=True) if chosen]
