"""Class indices that are stored in containers: their names, or a refusal that names the option."""

import pytest

from vit21k.errors import LayoutError
from vit21k.sources.container import UNLABELLED, LabelOptions


def test_an_index_is_the_rank_in_the_given_class_list() -> None:
    labels = LabelOptions(class_names=("tench", "goldfish"))
    assert [labels.name_of_index(i, "a.tar") for i in (1, 0, UNLABELLED)] == [
        "goldfish",
        "tench",
        None,
    ]


@pytest.mark.parametrize("class_names", [None, ("tench",)])
def test_an_index_without_a_name_is_refused(class_names: tuple[str, ...] | None) -> None:
    with pytest.raises(LayoutError) as caught:
        LabelOptions(class_names=class_names).name_of_index(1, "a.tar")
    assert "--classes LIST" in (caught.value.hint or "")
