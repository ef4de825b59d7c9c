"""`vit21k.manifest.wordnet`: how two labels of an image relate."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.manifest.class_lists import known_list
from vit21k.manifest.classes import ClassList
from vit21k.manifest.wordnet import NEAR_DEPTH, RANKED, Hierarchy, Relation, load_synsets, relate


@cache
def _fall11() -> Hierarchy:
    return Hierarchy.of(known_list("fall11"))


@pytest.fixture
def fall11() -> Hierarchy:
    return _fall11()


def _relation(hierarchy: Hierarchy, first: str, second: str) -> tuple[Relation, str, int]:
    index_of = {wnid: index for index, wnid in enumerate(hierarchy.classes.wnids)}
    pairs = np.array([[index_of[first]], [index_of[second]]])
    related = relate(hierarchy, *pairs)
    wnid = hierarchy.synsets.wnids[related.row_P[0]]
    return RANKED[related.rank_P[0]], hierarchy.synsets.name(wnid), int(related.distance_P[0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("n07747607", "n07747055", (Relation.ANCESTOR, "citrus, citrus fruit, citrous fruit", 1)),
        ("n01440764", "n01443537", (Relation.SIBLINGS, "cyprinid, cyprinid fish", 2)),
        ("n02958343", "n02834778", (Relation.NEAR, "wheeled vehicle", 4)),  # car; bicycle
        ("n07639069", "n04394261", (Relation.FAR, "physical entity", 14)),  # doughnut; target
        ("n02084071", "n12651611", (Relation.FAR, "organism, being", 15)),  # dog; pear tree
    ],
)
def test_two_classes_relate_as_people_would_say(
    fall11: Hierarchy, first: str, second: str, expected: tuple[Relation, str, int]
) -> None:
    assert _relation(fall11, first, second) == expected
    assert _relation(fall11, second, first) == expected


PAIRS = st.lists(st.tuples(*[st.integers(0, 21_840)] * 2), min_size=1, max_size=10)


@settings(max_examples=25)
@given(PAIRS)
def test_what_two_have_in_common_is_the_deepest_that_walks_through_wordnet_share(
    pairs: list[tuple[int, int]],
) -> None:
    hierarchy, synsets = _fall11(), load_synsets()
    related = relate(hierarchy, *np.array(pairs).T)

    for (first, second), rank, row, depth in zip(
        pairs, related.rank_P, related.row_P, related.depth_P, strict=True
    ):
        names = [hierarchy.classes.wnids[index] for index in (first, second)]
        lines = [{name, *synsets.ancestors(name)} for name in names]
        common = synsets.rows_of(sorted(lines[0] & lines[1]))
        assert row in common
        assert depth == synsets.depths[common].max()
        if names[0] in lines[1] or names[1] in lines[0]:
            assert RANKED[rank] is Relation.ANCESTOR
        elif set(synsets.parents(names[0])) & set(synsets.parents(names[1])):
            assert RANKED[rank] is Relation.SIBLINGS
        else:
            assert RANKED[rank] is (Relation.NEAR if depth >= NEAR_DEPTH else Relation.FAR)


def test_folders_that_wordnet_does_not_know_relate_to_nothing() -> None:
    hierarchy = Hierarchy.of(ClassList(("airplane", "cat", "n02084071")))
    related = relate(hierarchy, np.array([0, 0]), np.array([1, 2]))

    assert [RANKED[rank] for rank in related.rank_P] == [Relation.UNKNOWN] * 2
    assert related.row_P.tolist() == related.depth_P.tolist() == related.distance_P.tolist()
    assert len(relate(hierarchy, *np.empty((2, 0), dtype=np.int64)).rank_P) == 0


def test_every_relation_says_what_it_is() -> None:
    assert all(relation.doc.endswith(".") for relation in Relation)
    assert [str(relation) for relation in RANKED] == [
        *("far", "unknown", "near", "siblings", "ancestor")
    ]
