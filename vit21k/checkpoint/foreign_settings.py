"""What other programs say of classes and pictures, beside their weights or by their custom."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vit21k.checkpoint.model_folder import EvalSettings
from vit21k.errors import CheckpointError
from vit21k.manifest.class_lists import known_list
from vit21k.manifest.classes import ClassList

_HALVES = (0.5, 0.5, 0.5)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Pillow's numbers, in which transformers writes them.
_RESAMPLE: Mapping[object, str] = {2: "bilinear", 3: "bicubic"}
# What publishers of Vision Transformers mean by a head of this size.
_CUSTOMARY = {1_000: "in1k", 21_841: "fall11", 21_843: "google"}
# The lists called "ImageNet-21K"; Google, PLSC and timm train them with sigmoids.
_SIZES_OF_21K = (21_841, 21_842, 21_843)


class _Custom(NamedTuple):
    """How the publishers of a format make pictures ready."""

    resize: float | None
    """Short side before the crop, in sides of the crop; None: squashed."""
    interpolation: Literal["bicubic", "bilinear"]
    imagenet: bool = False
    """Whether mean and deviation are ImageNet's, or 0.5."""


_CUSTOMS = {
    "google": _Custom(None, "bilinear"),
    "timm": _Custom(1 / 0.9, "bicubic"),
    "torchvision": _Custom(256 / 224, "bilinear", imagenet=True),
    "plsc": _Custom(256 / 224, "bicubic"),
    "paddlevit": _Custom(256 / 224, "bicubic"),
    "pit": _Custom(1 / 0.9, "bicubic", imagenet=True),
}
_FINE_TUNED_FROM = 384  # pixels; PLSC and PaddleViT then squash, as Google
_PREPROCESSOR = "preprocessor_config.json"


class FoundClasses(NamedTuple):
    """What the outputs of foreign weights mean."""

    classes: ClassList
    guess: str | None = None
    """How that is known, if nothing says it: a sentence."""


def classes_of(config: Mapping[str, Any], num_classes: int) -> FoundClasses:
    """Return the class list that *config* tells; else the one that is always trained at this size.

    Where there is no such list, classes are called by their index.

    Raises:
        CheckpointError: *config* names another number of classes.
    """
    if num_classes == 0:
        return FoundClasses(ClassList(()))
    if wnids := config.get("label_names"):
        names = config.get("label_descriptions") or {}
        if not isinstance(names, Mapping):
            names = dict(zip(wnids, names, strict=False))
        found = ClassList(tuple(map(str, wnids)), tuple(names.get(wnid) for wnid in wnids))
    elif labels := config.get("id2label"):
        texts = tuple(str(labels[key]) for key in sorted(labels, key=int))
        found = ClassList(_wnids_named(texts), texts)
    else:
        return _customary(num_classes)
    if len(found) != num_classes:
        raise CheckpointError(f"{len(found)} class names for a head of {num_classes}")
    return FoundClasses(found)


def _customary(num_classes: int) -> FoundClasses:
    name = _CUSTOMARY.get(num_classes)
    if name is None:
        return FoundClasses(ClassList(_indices(num_classes)))
    return FoundClasses(
        known_list(name),
        f"nothing says what the {num_classes:,} outputs mean; taken for the list `{name}`",
    )


def _wnids_named(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wnids of a known list whose classes have these names, else indices."""
    name = _CUSTOMARY.get(len(texts))
    if name is not None:
        known = known_list(name)
        pairs = zip(texts, known.names, strict=True)
        if sum(_lemma(text) == _lemma(other or "") for text, other in pairs) > len(texts) // 2:
            return known.wnids
    return _indices(len(texts))


def _lemma(text: str) -> str:
    return text.partition(",")[0].strip().lower()


def _indices(num_classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_classes)))


def loss_kind_of(config: Mapping[str, Any], num_classes: int) -> Literal["sigmoid", "softmax"]:
    """Return what turns logits into probabilities: told, or by the custom of ImageNet-21K."""
    told = config.get("problem_type")
    if told is not None:
        return "sigmoid" if told == "multi_label_classification" else "softmax"
    return "sigmoid" if num_classes in _SIZES_OF_21K else "softmax"


def settings_of(
    format_: str, args: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> EvalSettings:
    """Return how a picture is made ready: as files beside the weights say, or by custom."""
    preprocessor = folder / _PREPROCESSOR
    if format_ == "transformers" and preprocessor.is_file():
        return _transformers(json.loads(preprocessor.read_text(encoding="utf-8")), args["img_size"])
    if config.get("pretrained_cfg"):
        return _timm(config["pretrained_cfg"], args["img_size"])
    custom = "pit" if "base_dims" in args else format_
    if custom in ("plsc", "paddlevit") and args["img_size"] >= _FINE_TUNED_FROM:
        custom = "google"
    how = _CUSTOMS.get(custom, _CUSTOMS["google"])
    size = args["img_size"]
    return EvalSettings(
        img_size=size,
        mode="squash" if how.resize is None else "center_crop",
        resize=None if how.resize is None else int(size * how.resize),
        interpolation=how.interpolation,
        mean=_IMAGENET_MEAN if how.imagenet else _HALVES,
        std=_IMAGENET_STD if how.imagenet else _HALVES,
    )


def _timm(config: Mapping[str, Any], size: int) -> EvalSettings:
    squash = config.get("crop_mode") == "squash"
    return EvalSettings(
        img_size=size,
        mode="squash" if squash else "center_crop",
        resize=None if squash else int(size / config.get("crop_pct", 0.875)),
        interpolation=_interpolation(config.get("interpolation", "bicubic")),
        mean=_triple(config.get("mean", _IMAGENET_MEAN)),
        std=_triple(config.get("std", _IMAGENET_STD)),
    )


def _transformers(config: Mapping[str, Any], size: int) -> EvalSettings:
    normalised = config.get("do_normalize", True)
    crops = bool(config.get("do_center_crop"))
    size_before = config.get("size") or {}
    short_side = size_before if isinstance(size_before, int) else size_before.get("shortest_edge")
    return EvalSettings(
        img_size=size,
        mode="center_crop" if crops else "squash",
        resize=short_side if crops else None,
        interpolation=_interpolation(_RESAMPLE.get(config.get("resample", 2))),
        mean=_triple(config.get("image_mean", _HALVES)) if normalised else (0.0, 0.0, 0.0),
        std=_triple(config.get("image_std", _HALVES)) if normalised else (1.0, 1.0, 1.0),
    )


def _interpolation(name: object) -> Literal["bicubic", "bilinear"]:
    """Return *name* if pictures can be resized so here, else the nearest."""
    return "bilinear" if name == "bilinear" else "bicubic"


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
