"""`vit21k.manifest.wordnet`: hypernyms and hyponyms among the classes of a list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit21k.manifest.class_lists import known_list, map_ids
from vit21k.manifest.classes import ClassList
from vit21k.manifest.wordnet import Hierarchy, load_synsets

DOG, ANIMAL, PERSON, BEAGLE, CANINE = (
    *("n02084071", "n00015388", "n00007846"),
    *("n02088364", "n02083346"),
)


@pytest.fixture(scope="module")
def fall11() -> Hierarchy:
    return Hierarchy.of(known_list("fall11"))


def test_the_leaves_and_inner_classes_of_fall11_are_counted(fall11: Hierarchy) -> None:
    assert fall11.is_leaf_K().sum() == 17_253
    assert (~fall11.is_leaf_K()).sum() == 4_588


def test_classes_of_fall11_have_four_and_a_half_ancestors_in_the_list(fall11: Hierarchy) -> None:
    num_ancestors = fall11.ancestors.num_K

    assert (num_ancestors > 0).sum() == 21_374
    assert num_ancestors.mean().round(2) == 4.66
    assert num_ancestors.max() == 15


def test_453_classes_of_fall11_have_several_parents_in_wordnet(fall11: Hierarchy) -> None:
    parents = [fall11.synsets.parents(wnid) for wnid in fall11.classes.wnids]

    assert sum(len(wnids) > 1 for wnids in parents) == 453


def test_the_person_subtree_of_each_list_is_counted(fall11: Hierarchy) -> None:
    assert fall11.subtree_K(PERSON).sum() == 2_836
    assert Hierarchy.of(known_list("in21k-p")).subtree_K(PERSON).sum() == 876
    assert Hierarchy.of(known_list("in21k-p-winter21")).subtree_K(PERSON).sum() == 105
    assert Hierarchy.of(known_list("in1k")).subtree_K(PERSON).sum() == 3


def test_337_classes_of_imagenet_1k_are_inner_classes_of_fall11(fall11: Hierarchy) -> None:
    ids = map_ids(known_list("in1k"), fall11.classes)
    ids = ids[ids >= 0]
    of_E = np.repeat(np.arange(len(fall11)), fall11.ancestors.num_K)
    below = np.unique(of_E[np.isin(fall11.ancestors.above_E, ids)])

    assert (~fall11.is_leaf_K()[ids]).sum() == 337
    assert len(below) == 1_245  # classes that are a kind of a class of ImageNet-1k


@given(st.lists(st.integers(0, 21_840), min_size=1, max_size=40, unique=True))
def test_ancestors_are_those_that_a_walk_through_wordnet_finds(picked: list[int]) -> None:
    wnids = tuple(known_list("fall11").wnids[index] for index in sorted(picked))
    hierarchy = Hierarchy.of(ClassList(wnids))

    for index, wnid in enumerate(wnids):
        found = {wnids[above] for above in hierarchy.ancestors.of(index)}
        assert found == set(load_synsets().ancestors(wnid)) & set(wnids)


def test_a_parent_is_the_nearest_class_that_is_in_the_list() -> None:
    hierarchy = Hierarchy.of(ClassList((ANIMAL, BEAGLE, CANINE)))

    assert hierarchy.parents.of(1) == [2]
    assert hierarchy.parents.of(2) == [0]
    assert hierarchy.primary_parent_K().tolist() == [-1, 2, 0]
    assert hierarchy.num_children_K.tolist() == [1, 0, 1]


def test_no_parent_is_above_another_parent(fall11: Hierarchy) -> None:
    places, higher = fall11.ancestors.of_each(fall11.parents.above_E)
    of_E = np.repeat(np.arange(len(fall11)), fall11.parents.num_K)
    parents = set(zip(of_E.tolist(), fall11.parents.above_E.tolist(), strict=True))

    assert not parents & set(zip(of_E[places].tolist(), higher.tolist(), strict=True))


def test_levels_reach_from_the_parents_to_all_ancestors(fall11: Hierarchy) -> None:
    one, all_levels = fall11.ancestors_within(1), fall11.ancestors_within(20)

    assert (one.starts == fall11.parents.starts).all()
    assert (all_levels.starts == fall11.ancestors.starts).all()
    assert set(fall11.ancestors_within(2).of(100)) >= set(one.of(100))
    assert fall11.ancestors_within(0).num_K.sum() == 0


def test_the_forest_of_primary_parents_has_no_circle(fall11: Hierarchy) -> None:
    parent_K = fall11.primary_parent_K()
    reached_K = np.arange(len(fall11))
    for _ in range(20):
        reached_K = np.where(reached_K >= 0, parent_K[reached_K], -1)

    assert (reached_K == -1).all()
    assert ((parent_K >= 0) == (fall11.parents.num_K > 0)).all()


def test_folders_that_are_no_wnids_have_nothing_above_them() -> None:
    hierarchy = Hierarchy.of(ClassList(("airplane", DOG, ANIMAL)))

    assert hierarchy.num_unknown == 1
    assert hierarchy.ancestors.of(0) == []
    assert hierarchy.ancestors.of(1) == [2]
    assert hierarchy.subtree_K(ANIMAL).tolist() == [False, True, True]


def test_a_subtree_may_be_named_after_a_noun_that_is_no_class() -> None:
    hierarchy = Hierarchy.of(ClassList((DOG, "n02121808")))  # dog; domestic cat

    assert hierarchy.subtree_K("n02075296").tolist() == [True, True]  # carnivore
    with pytest.raises(KeyError):
        hierarchy.subtree_K("n99999999")
