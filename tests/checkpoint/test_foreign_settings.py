"""`checkpoint.foreign_settings`: what the outputs of foreign weights mean."""

import pytest

from vit21k.checkpoint.foreign import classes_of
from vit21k.manifest.class_lists import KNOWN_LISTS, known_list


@pytest.mark.parametrize("name", KNOWN_LISTS)
def test_heads_of_known_sizes_are_named_with_a_warning(name: str) -> None:
    size = KNOWN_LISTS[name].num_classes

    found = classes_of({}, size)

    assert found.guess is not None
    assert f"`{name}`" in found.guess
    assert found.classes == known_list(name)


def test_a_head_of_another_size_has_indices_and_no_guess() -> None:
    found = classes_of({}, 37)

    assert found.classes.wnids == tuple(map(str, range(37)))
    assert found.guess is None


@pytest.mark.parametrize("name", ["in21k-p", "in12k", "microsoft"])
def test_names_next_to_the_weights_are_recognised(name: str) -> None:
    known = known_list(name)
    labels = {str(index): text or "?" for index, text in enumerate(known.names)}

    found = classes_of({"id2label": labels}, len(known))

    assert found.classes.wnids == known.wnids
    assert found.guess is None
