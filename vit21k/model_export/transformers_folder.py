"""What transformers wants beside the weights: ``config.json`` and ``preprocessor_config.json``.

Its image processors round an odd margin of a crop down, vit21k and torchvision to the even number.
Where that shows, ``config.json`` names its wrapper around timm's transforms, which give the pixels
of vit21k, and ``preprocessor_config.json`` is for programs that read nothing else.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard
from vit21k.manifest.classes import ClassList
from vit21k.weights.transformers_vit import transformers_config

# What `load_model` reads back.
_OURS = ("label_names", "label_descriptions", "vit21k")
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_THROUGH_TIMM = "TimmWrapperImageProcessor"


def whole_config(card: ModelCard, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``config.json`` for transformers, with what is ours of *own*."""
    labels = _labels(card.classes)
    multi_label = card.loss_kind == "sigmoid"
    return {
        **transformers_config(card.args),
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": (
            "multi_label_classification" if multi_label else "single_label_classification"
        ),
        **_processor(card.eval_settings, own),
        **{key: own[key] for key in _OURS},
    }


def needs_timm(settings: EvalSettings) -> bool:
    """Return whether transformers' own image processors would crop elsewhere."""
    if settings.margin == "floor":
        return False
    margin = (settings.resize or settings.img_size) - settings.img_size
    return settings.mode == "center_crop" or margin % 2 == 1


def _processor(settings: EvalSettings, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes `AutoImageProcessor` read ``config.json``, if it is to."""
    if not needs_timm(settings):
        return {}
    return {"image_processor_type": _THROUGH_TIMM, "pretrained_cfg": own["pretrained_cfg"]}


def preprocessor(settings: EvalSettings) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``."""
    size = {"height": settings.img_size, "width": settings.img_size}
    resize = settings.resize or settings.img_size
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _RESAMPLE[settings.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }
    if settings.mode == "squash" and resize == settings.img_size:
        return {"image_processor_type": "ViTImageProcessor", "size": size, **common}
    # Of its classes, CLIP's resizes the short side and crops, DeiT's resizes both sides and crops.
    squash = settings.mode == "squash"
    return {
        "image_processor_type": "DeiTImageProcessor" if squash else "CLIPImageProcessor",
        "size": {"height": resize, "width": resize} if squash else {"shortest_edge": resize},
        "do_center_crop": True,
        "crop_size": size,
        **common,
    }


def _labels(classes: ClassList) -> list[str]:
    """Return what each class is called; the wnid tells those of the same name apart."""
    names = [name or wnid for name, wnid in zip(classes.names, classes.wnids, strict=True)]
    times = Counter(names)
    return [
        f"{name} ({wnid})" if times[name] > 1 else name
        for name, wnid in zip(names, classes.wnids, strict=True)
    ]
