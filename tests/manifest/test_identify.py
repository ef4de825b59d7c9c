"""`vit21k.manifest.class_lists`: which known list a list is, or is a part of."""

from vit21k.manifest.class_lists import identify, known_list, wholes
from vit21k.manifest.classes import ClassList


def test_a_known_list_is_identified_by_its_classes_and_their_order() -> None:
    best = identify(known_list("in1k"))[0]
    swapped = ClassList(tuple(reversed(known_list("in1k").wnids)))

    assert (best.name, best.is_equal, best.is_part) == ("in1k", True, False)
    assert not identify(swapped)[0].is_equal
    assert identify(swapped)[0].name == "in1k"


def test_a_part_of_a_list_is_a_part_of_every_list_that_holds_it() -> None:
    part = ClassList(known_list("in1k").wnids[:10])

    assert [match.name for match in wholes(part)][:1] == ["in1k"]
    assert [match.num_known for match in wholes(part)] == sorted(m.num_known for m in wholes(part))
    assert wholes(known_list("google")) == []


def test_folders_of_another_data_set_are_no_part_of_any_list() -> None:
    assert wholes(ClassList(("airplane", "cat"))) == []
    assert identify(ClassList(("airplane", "cat")))[0].num_common == 0
