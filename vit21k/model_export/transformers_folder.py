"""What transformers wants beside the weights: ``config.json`` and ``preprocessor_config.json``."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard
from vit21k.manifest.classes import ClassList
from vit21k.weights.transformers_vit import transformers_config

# What `load_model` reads back.
_OURS = ("label_names", "label_descriptions", "vit21k")
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


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
        **{key: own[key] for key in _OURS},
    }


def preprocessor(settings: EvalSettings) -> dict[str, Any]:
    """Return the content of ``preprocessor_config.json``."""
    size = {"height": settings.img_size, "width": settings.img_size}
    common = {
        "do_resize": True,
        "resample": _RESAMPLE[settings.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }
    if settings.mode == "squash":
        return {"image_processor_type": "ViTImageProcessor", "size": size, **common}
    # transformers' processor for ViT has no crop; that of CLIP resizes the short side and crops.
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": settings.resize or settings.img_size},
        "do_center_crop": True,
        "crop_size": size,
        "do_convert_rgb": True,
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
