import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit21k.checkpoint.initialise import map_head
from vit21k.errors import UsageError
from vit21k.manifest.class_lists import known_list
from vit21k.manifest.classes import ClassList


def head(num_classes, start=0.0, width=2):
    rows = torch.arange(num_classes * width).view(num_classes, width) + start
    return {"head.weight": rows.float(), "head.bias": rows[:, 0].float(), "norm.bias": rows[0]}


@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True),
)
def test_each_class_keeps_its_row_and_others_their_first_values(theirs, ours):
    source, fresh = head(len(theirs)), head(len(ours), start=1000.0)
    if not set(theirs) & set(ours):
        with pytest.raises(UsageError):
            map_head(source, fresh, ClassList(tuple(theirs)), ClassList(tuple(ours)))
        return

    mapped = map_head(source, fresh, ClassList(tuple(theirs)), ClassList(tuple(ours)))

    assert mapped.tensors.keys() == {"head.weight", "head.bias"}
    for row, wnid in enumerate(ours):
        for name, tensor in mapped.tensors.items():
            wanted = source[name][theirs.index(wnid)] if wnid in theirs else fresh[name][row]
            assert torch.equal(tensor[row], wanted)
    assert mapped.missing == tuple(wnid for wnid in ours if wnid not in theirs)


@pytest.mark.parametrize("name", ["google", "fall11", "microsoft"])
def test_imagenet_1k_is_found_in_every_list_of_21k_but_for_the_teddy(name):
    source, classes = known_list(name), known_list("in1k")

    mapped = map_head(head(len(source)), head(1000, start=-5.0), source, classes)

    assert mapped.missing == (() if name == "microsoft" else ("n04399382",))
    tench = source.wnids.index("n01440764")
    assert torch.equal(mapped.tensors["head.weight"][0], head(len(source))["head.weight"][tench])


def test_both_heads_of_a_distilled_model_are_mapped():
    tensors = {f"{prefix}.bias": torch.arange(2.0) for prefix in ("head", "head_dist")}

    mapped = map_head(tensors, tensors, ClassList(("a", "b")), ClassList(("b", "a")))

    assert mapped.tensors["head_dist.bias"].tolist() == [1.0, 0.0]
