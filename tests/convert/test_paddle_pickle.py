"""A ``.pdparams`` file is a pickle: what it may build, and what it may not."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit21k.checkpoint.load import load_model
from vit21k.convert.arrays import read_arrays
from vit21k.convert.pickles import Leaf, PickleRefusedError, interpret
from vit21k.errors import CheckpointError
from vit21k.models.registry import get_model

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def arrays_of(path):
    """Return the arrays of a pickle of a table, loaded."""
    content = interpret(path.read_bytes())
    if not isinstance(content, dict) or not content:
        raise ValueError("no table of arrays")
    content.pop("StructuredToParameterName@@", None)
    values = {name: v[1] if isinstance(v, tuple) else v for name, v in content.items()}
    if not all(isinstance(value, Leaf) for value in values.values()):
        raise ValueError("not arrays alone")
    return {name: value.load().numpy() for name, value in values.items()}


class Parameter:
    """Pickles as paddle's do: a tuple of name and array."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return (tuple, (("linear_0.w_0", self.array),))


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("wrap", [lambda array: array, Parameter])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "bool", ">f4"])
def test_arrays_come_back_as_they_were(tmp_path, protocol, wrap, dtype):
    arrays = {
        "a.weight": np.arange(6).reshape(2, 3).astype(dtype),
        "b": np.arange(6).reshape(2, 3).T.astype(dtype, order="F"),
        "scalar": np.ones((), dtype),
    }
    table = {"StructuredToParameterName@@": {"a.weight": "linear_0.w_0"}}
    wrapped = {name: wrap(array) for name, array in arrays.items()}

    found = arrays_of(write(tmp_path / "x.pdparams", {**wrapped, **table}, protocol))

    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype.isnative


@pytest.mark.parametrize("place", ["value", "key", "inside", "after"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_call_is_made_wherever_it_is_planted(tmp_path, place, protocol):
    canary = tmp_path / "canary"
    call = Call(Path.write_text, canary, "executed")
    array = np.ones(3, np.float32)
    content = {
        "value": {"a": array, "b": call},
        "key": {(call,): array},
        "inside": {"a": (array, [call])},
        "after": [{"a": array}, call],
    }[place]

    with pytest.raises((PickleRefusedError, ValueError)):
        arrays_of(write(tmp_path / "x.pdparams", content, protocol))
    with pytest.raises(CheckpointError):
        read_arrays(tmp_path / "x.pdparams")

    assert not canary.exists()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (eval, ("1",)),
        (getattr, ("", "join")),
        (np.load, ("x.npy",)),
        (np.fromfile, ("x",)),
        (np.ndarray, ((3,), "O")),
        (np.dtype, ("O",)),
        (np.dtype, ([("a", "O")],)),
        (np.zeros, (10,)),
        (bytearray, (10,)),
        (type, ("C", (), {})),
    ],
)
def test_no_function_is_found_by_its_name(tmp_path, function, arguments):
    path = write(tmp_path / "x.pdparams", {"a": Call(function, *arguments)})

    with pytest.raises((PickleRefusedError, ValueError)):
        arrays_of(path)


def test_objects_in_an_array_are_refused(tmp_path):
    path = write(tmp_path / "x.pdparams", {"a": np.array([{}, []], dtype=object)})

    with pytest.raises(PickleRefusedError):
        arrays_of(path)


@given(st.binary(max_size=200))
def test_random_bytes_end_in_one_of_two_errors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "odd.pdparams"
    path.write_bytes(b"\x80\x04" + content)

    with pytest.raises((PickleRefusedError, ValueError)):
        arrays_of(path)


@pytest.mark.parametrize("content", [{}, [], {"a": 3}, {"a": [np.ones(2)]}])
def test_what_is_no_table_of_arrays_is_refused(tmp_path, content):
    with pytest.raises((PickleRefusedError, ValueError)):
        arrays_of(write(tmp_path / "x.pdparams", content))


def plsc_state(model):
    """Return the weights of *model* as PLSC saves them: matrices as [in, out]."""
    state = {}
    for name, tensor in model.state_dict().items():
        turned = tensor.T if tensor.ndim == 2 and name.endswith("weight") else tensor
        state[name.replace("pre_logits.fc.", "head0.")] = np.ascontiguousarray(turned.numpy())
    return state


def paddlevit_name(name):
    """Return PaddleViT's name of our *name*."""
    for ours, theirs in {
        "patch_embed.proj.": "patch_embedding.patch_embedding.",
        "pos_embed": "patch_embedding.position_embeddings",
        "cls_token": "patch_embedding.cls_token",
        "blocks.": "encoder.layers.",
        "norm1": "attn_norm",
        "norm2": "mlp_norm",
        "attn.proj": "attn.out",
        "head.": "classifier.",
    }.items():
        name = name.replace(ours, theirs)
    return f"encoder.encoder_{name}" if name.startswith("norm.") else name


@pytest.mark.parametrize("overrides", [{}, {"representation_size": 32}])
def test_plscs_weights_give_the_same_logits(tmp_path, overrides):
    torch.manual_seed(0)
    theirs = get_model("vit_tiny_patch16_224", num_classes=5, **SMALL, **overrides).eval()
    half = {name: array.astype(np.float16) for name, array in plsc_state(theirs).items()}
    theirs.load_state_dict({k: v.half().float() for k, v in theirs.state_dict().items()})
    path = write(tmp_path / "imagenet21k-ViT-L_16-224.pdparams", half)
    images = torch.randn(2, 3, 32, 32)

    model, card = load_model(path, model_args={"num_heads": 2})

    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))
    assert model.pos_embed.dtype == torch.float32
    assert card.eval_settings.interpolation == "bicubic"


def test_paddlevits_names_are_read(tmp_path):
    theirs = get_model("vit_tiny_patch16_224", num_classes=5, **SMALL)
    state = {paddlevit_name(name): value for name, value in plsc_state(theirs).items()}

    model, _ = load_model(write(tmp_path / "vit.pdparams", state), model_args={"num_heads": 2})

    for name, tensor in theirs.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
