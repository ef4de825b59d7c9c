import inspect
import json
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest

from vit21k.errors import UsageError
from vit21k.models.registry import (
    PIT_ARGUMENTS,
    VIT_ARGUMENTS,
    get_model,
    list_models,
    model_args,
)
from vit21k.recipe.schema import ModelSection


def test_all_published_sizes_are_listed_at_224_and_384():
    names = list_models()

    published = ["tiny_patch16", "small_patch16", "small_patch32", "base_patch8", "base_patch16",
                 "base_patch32", "large_patch16", "large_patch32", "huge_patch14"]  # fmt: skip
    assert {f"vit_{name}_{size}" for name in published for size in (224, 384)} <= set(names)


def test_names_and_arguments_are_timms():
    timm = pytest.importorskip("timm")
    torch = pytest.importorskip("torch")
    for name in list_models():
        if not timm.is_model(name):
            continue
        with torch.device("meta"):
            ours = {key: value.shape for key, value in get_model(name).state_dict().items()}
            theirs = timm.create_model(name, num_classes=1000).state_dict()
        assert ours == {key: value.shape for key, value in theirs.items()}, name


def test_arguments_are_complete_and_plain():
    args = model_args("vit_large_patch16_384", num_classes=21_841, representation_size=1024)

    assert json.loads(json.dumps(args)) == args
    assert args["img_size"] == 384
    assert args["embed_dim"] == 1024
    assert args["num_classes"] == 21_841
    assert args["qkv_bias"] is True


TRAINING_OPTIONS = {"recompute", "any_size", "both_heads"}


def test_a_constructor_takes_the_declared_arguments_and_has_no_defaults_of_its_own():
    vit = pytest.importorskip("vit21k.models.vit", exc_type=ImportError)
    pit = pytest.importorskip("vit21k.models.pit", exc_type=ImportError)

    for model, declared in (
        (vit.VisionTransformer, VIT_ARGUMENTS),
        (pit.PoolingTransformer, PIT_ARGUMENTS),
    ):
        parameters = inspect.signature(model).parameters
        names = [name for name in parameters if name not in TRAINING_OPTIONS]
        assert names == list(declared)
        assert {parameters[name].default for name in names} == {inspect.Parameter.empty}


def test_a_recipe_offers_the_choices_of_the_models():
    offered = {}
    for name, field in ModelSection.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        literals = [kind for kind in kinds if get_origin(kind) is Literal]
        if name in VIT_ARGUMENTS and literals:
            offered[name] = get_args(literals[0])

    assert offered == {name: VIT_ARGUMENTS[name].choices for name in offered}
    assert len(offered) == 7


def test_a_model_is_built_from_its_arguments_alone():
    vit = pytest.importorskip("vit21k.models.vit", exc_type=ImportError)

    args = model_args("vit_tiny_patch16_224", img_size=32, patch_size=4, depth=2, num_classes=3)
    model = vit.VisionTransformer(**args)

    assert model.grid_size == (8, 8)
    assert len(model.blocks) == 2


@pytest.mark.parametrize(
    ("name", "overrides", "message", "hint"),
    [
        ("vit_base_patch61_224", {}, "no model is called", "vit_base_patch16_224"),
        ("resnet50", {}, "no model is called", "vit21k models"),
        ("vit_tiny_patch16_224", {"imgsize": 32}, "no argument `imgsize`", "img_size"),
        ("vit_tiny_patch16_224", {"xyzzy": 1}, "no argument `xyzzy`", "arguments: img_size"),
        ("vit_tiny_patch16_224", {"img_size": 8}, "smaller than `patch_size` 16", None),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "not a multiple of `num_heads` 5", None),
        ("vit_tiny_patch16_224", {"depth": 0}, "`depth` is 0", None),
        ("vit_tiny_patch16_224", {"global_pool": "max"}, "token or avg or map", None),
        ("vit_tiny_patch16_224", {"act_layer": "relu"}, "gelu or gelu_tanh", None),
        ("vit_tiny_patch16_224", {"class_token": False}, "class token", "global_pool=avg"),
        ("vit_tiny_patch16_224", {"distilled": True, "global_pool": "avg"}, "distilled", "token"),
        (
            "vit_tiny_patch16_224",
            {"mlp_layer": "swiglu", "mlp_ratio": 2.996},
            "not even",
            "mlp_ratio",
        ),
        ("pit_ti_224", {"reg_tokens": 4}, "no argument `reg_tokens`", "arguments"),
        ("pit_ti_224", {"act_layer": "quick_gelu"}, "gelu or gelu_tanh", None),
    ],
)
def test_what_makes_no_model_is_refused_with_a_hint(name, overrides, message, hint):
    with pytest.raises(UsageError, match=message) as caught:
        model_args(name, **overrides)

    assert (hint or "") in (caught.value.hint or "")


def test_listing_models_and_their_cost_needs_no_torch():
    code = (
        "import sys; from vit21k.models.registry import list_models, model_args\n"
        "from vit21k.models.cost import num_params\n"
        "[num_params(model_args(name)) for name in list_models()]\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
