"""What a format cannot hold of a model, and what changes in its last digits."""

from collections.abc import Mapping
from typing import Any, Literal

from vit21k.checkpoint.model_folder import EvalSettings
from vit21k.errors import UsageError
from vit21k.model_export.transformers_folder import needs_timm
from vit21k.models.shapes import is_pit
from vit21k.models.variants import VARIANTS

Target = Literal[
    "timm", "transformers", "torchvision", "npz", "safetensors", "torch-export", "onnx"
]

_LIBRARIES = {
    "timm": "timm",
    "transformers": "transformers' ViT",
    "torchvision": "torchvision's ViT",
    "npz": "Google's ViT",
}
_USUAL_EPS = 1e-6
# Their folders are those of a classifier: the library would give it a head of random values.
_NEED_A_HEAD = ("transformers", "torchvision")


def check_limits(to: Target, name: str, args: Mapping[str, Any]) -> tuple[str, ...]:
    """Check that *to* can hold the model of *args*.

    Returns:
        What its library will compute otherwise, in the last digits, each in a sentence.

    Raises:
        UsageError: It would give other logits; the hint names a format that does not.
    """
    if to not in _LIBRARIES:
        return ()
    if to in _NEED_A_HEAD and not args["num_classes"]:
        raise UsageError(
            f"{_LIBRARIES[to]} is written as a classifier, and these weights have no head",
            hint="`--to timm`, `--to npz` and `--to safetensors` hold a model without one",
        )
    if lacking := _lacking(to, name, args):
        raise UsageError(
            f"{_LIBRARIES[to]} has no {lacking[0]}, which this model has",
            hint="`--to safetensors`, `--to torch-export` and `--to onnx` hold every model",
        )
    return _differences(to, args)


def preprocessing_notes(to: Target, settings: EvalSettings) -> tuple[str, ...]:
    """Return what the library of *to* needs, or does otherwise, when it prepares an image."""
    if to == "transformers" and needs_timm(settings):
        note = (
            "transformers prepares images through timm, which must be installed: its own image "
            "processors round an odd margin of the crop down, and are one pixel off then"
        )
        return (note,)
    if to == "transformers":
        note = (
            'load the image processor with backend="pil" (use_fast=False in the first versions '
            "5): torch, its default, resizes to values that differ by up to 12 of 255"
        )
        return (note,)
    if to in ("timm", "torchvision") and settings.margin == "floor":
        note = (
            f"{_LIBRARIES[to]} rounds half an odd margin of the crop to the even number, this "
            "model's images are cropped with it rounded down: some crops are one pixel off"
        )
        return (note,)
    return ()


def _lacking(to: Target, name: str, args: Mapping[str, Any]) -> list[str]:
    """Return the parts of the model that the library does not have."""
    if is_pit(args):
        if to == "timm":
            return [] if args["act_layer"] == "gelu" else ["PiT with the tanh form of GELU"]
        return ["PiT"]
    hybrid = args["resnet_layers"] is not None
    mean = args["global_pool"] == "avg"
    scaled = args["init_values"] is not None
    googles_mean = not args["class_token"] and args["fc_norm"] is False
    has = {
        "timm": {
            "pre-logits": args["representation_size"] is not None,
            "ResNet of these stages": hybrid
            and args["resnet_layers"] != VARIANTS[name].get("resnet_layers"),
        },
        "transformers": {
            "pre-logits before a head": args["representation_size"] is not None,
            "ResNet": hybrid,
            "mean pooling": mean,
            "layer scale": scaled,
        },
        "torchvision": {
            "layer scale": scaled,
            "ResNet": hybrid,
            "mean pooling": mean,
            "attention without biases": not args["qkv_bias"],
        },
        "npz": {
            "layer scale": scaled,
            "mean pooling with a class token, or before the norm": mean and not googles_mean,
            "attention without biases": not args["qkv_bias"],
        },
    }
    return [part for part, is_there in has[to].items() if is_there]


def _differences(to: Target, args: Mapping[str, Any]) -> tuple[str, ...]:
    if is_pit(args):
        return ()
    form = {"torchvision": "gelu", "npz": "gelu_tanh"}.get(to, args["act_layer"])
    library = _LIBRARIES[to]
    notes = []
    if args["act_layer"] != form:
        words = {"gelu": "exact", "gelu_tanh": "tanh"}
        notes.append(
            f"{library} computes the {words[form]} form of GELU, these weights were trained with "
            f"the {words[args['act_layer']]} one: logits differ from the fourth digit on"
        )
    if to != "transformers" and args["norm_eps"] != _USUAL_EPS:
        notes.append(
            f"{library} adds {_USUAL_EPS} in layer norms, these weights came with "
            f"{args['norm_eps']}: logits differ in the last digits"
        )
    theirs = "timm" if to == "timm" else "google"
    if args["resnet_layers"] is not None and args["stem_eps"] != theirs:
        notes.append(f"{library} has other small numbers in its ResNet: the last digits differ")
    return tuple(notes)
