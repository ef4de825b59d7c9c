"""A trained model -> a folder in the format of another library, or a graph for any batch size."""

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vit21k.atomic import atomic_folder
from vit21k.checkpoint.foreign import NO_CHOICE, OpenedWeights, WeightsChoice
from vit21k.checkpoint.load import open_weights
from vit21k.checkpoint.model_folder import (
    CONFIG,
    WEIGHTS,
    EvalSettings,
    ModelCard,
    model_config,
    write_json,
    write_tensors,
)
from vit21k.checkpoint.preprocessing import AS_FILES_SAY, Preprocessing
from vit21k.convert.google import to_google
from vit21k.convert.torchvision import to_torchvision
from vit21k.convert.transformers import to_transformers, transformers_config
from vit21k.errors import MissingExtraError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.models.cost import is_pit
from vit21k.models.registry import VARIANTS, build_model
from vit21k.models.vit import ImageClassifier

# Keys that `load_model` reads.
_OURS = ("label_names", "label_descriptions", "vit21k")
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_THROUGH_TIMM = "TimmWrapperImageProcessor"


def _config_for_transformers(card: ModelCard, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of ``config.json`` for transformers, with our keys of *own*."""
    labels = _labels(card.classes)
    multi_label = card.loss_kind == "sigmoid"
    # With these keys `AutoImageProcessor` reads ``config.json``.
    processor = {"image_processor_type": _THROUGH_TIMM, "pretrained_cfg": own["pretrained_cfg"]}
    return {
        **transformers_config(card.args),
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": (
            "multi_label_classification" if multi_label else "single_label_classification"
        ),
        **(processor if needs_timm(card.eval_settings) else {}),
        **{key: own[key] for key in _OURS},
    }


def needs_timm(settings: EvalSettings) -> bool:
    """Return whether transformers' own image processors would crop elsewhere."""
    if settings.margin == "floor":
        return False
    margin = (settings.resize or settings.img_size) - settings.img_size
    return settings.mode == "center_crop" or margin % 2 == 1


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
    # CLIP's class resizes the short side and crops, DeiT's resizes both sides and crops.
    squash = settings.mode == "squash"
    return {
        "image_processor_type": "DeiTImageProcessor" if squash else "CLIPImageProcessor",
        "size": {"height": resize, "width": resize} if squash else {"shortest_edge": resize},
        "do_center_crop": True,
        "crop_size": size,
        **common,
    }


def _labels(classes: ClassList) -> list[str]:
    """Return the names of the classes, made unique by their wnids."""
    names = [name or wnid for name, wnid in zip(classes.names, classes.wnids, strict=True)]
    times = Counter(names)
    return [
        f"{name} ({wnid})" if times[name] > 1 else name
        for name, wnid in zip(names, classes.wnids, strict=True)
    ]


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
# Their folders are those of a classifier: the library would initialise a missing head randomly.
_NEED_A_HEAD = ("transformers", "torchvision")


def check_limits(to: Target, name: str, args: Mapping[str, Any]) -> tuple[str, ...]:
    """Check that *to* can represent the model of *args*.

    Returns:
        Differences of its library in the last digits, each in a sentence.

    Raises:
        UsageError: It would give other logits; the hint names other formats.
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
    """Return requirements and differences of the library of *to* when it prepares an image."""
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


def _options(args: Mapping[str, Any]) -> dict[str, bool]:
    """Return the options that only timm has too, and whether the model has them."""
    return {
        "layer scale": args["init_values"] is not None,
        "register tokens": args["reg_tokens"] > 0,
        "position embedding of the patches alone": args["no_embed_class"] and args["class_token"],
        "norm before the first block": args["pre_norm"],
        "norm of queries and keys": args["qk_norm"],
        "RMSNorm": args["norm_layer"] != "layernorm",
        "attention pooling": args["global_pool"] == "map",
        "distillation token": args["distilled"],
    }


def _lacking(to: Target, name: str, args: Mapping[str, Any]) -> list[str]:
    """Return the parts of the model that the library lacks."""
    if is_pit(args):
        if to == "timm":
            return [] if args["act_layer"] == "gelu" else ["PiT with the tanh form of GELU"]
        return ["PiT"]
    hybrid = args["resnet_layers"] is not None
    mean = args["global_pool"] == "avg"
    googles_mean = not args["class_token"] and args["fc_norm"] is False
    nowhere = {
        "SwiGLU": args["mlp_layer"] == "swiglu",
        "rotary positions": args["rope"] != "none",
        "model without positions": args["pos_embed"] == "none",
        "pooling of the class token and the mean": args["global_pool"] == "token_avg",
    }
    has = {
        "timm": {
            **nowhere,
            "pre-logits": args["representation_size"] is not None,
            "ResNet of these stages": hybrid
            and args["resnet_layers"] != VARIANTS[name].get("resnet_layers"),
        },
        "transformers": {
            **nowhere,
            **_options(args),
            "pre-logits before a head": args["representation_size"] is not None,
            "ResNet": hybrid,
            "mean pooling": mean,
        },
        "torchvision": {
            **nowhere,
            **_options(args),
            "quick GELU": args["act_layer"] == "quick_gelu",
            "ResNet": hybrid,
            "mean pooling": mean,
            "attention without biases": not args["qkv_bias"],
        },
        "npz": {
            **nowhere,
            **_options(args),
            "quick GELU": args["act_layer"] == "quick_gelu",
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
        notes.append(f"{library} has other epsilons in its ResNet: the last digits differ")
    return tuple(notes)


_LOAD: dict[Target, str] = {
    "timm": """model = timm.create_model("local-dir:FOLDER", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))""",
    "safetensors": 'vit21k.load_model("FOLDER")',
    "transformers": """transformers.AutoModelForImageClassification.from_pretrained("FOLDER")
transformers.AutoImageProcessor.from_pretrained("FOLDER", backend="pil")""",
    "torchvision": """model = torchvision.models.VisionTransformer(
    image_size={img_size}, patch_size={patch_size}, num_layers={depth}, num_heads={num_heads},
    hidden_dim={embed_dim}, mlp_dim={mlp_dim}, num_classes={num_classes},
    representation_size={representation_size},
)
model.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"))""",
    "npz": 'vit_jax.checkpoint.load("FOLDER/model.npz")',
    "torch-export": 'torch.export.load("FOLDER/model.pt2").module()(images)',
    "onnx": """session = onnxruntime.InferenceSession("FOLDER/model.onnx")
session.run(None, {{"pixel_values": images}})""",
}
_INPUT = (
    "RGB images, {resizing}, {interpolation}; values 0 to 1 minus {mean}, divided by {std}. "
    "An array of images is `[batch, {in_chans}, {img_size}, {img_size}]`{last}. "
    "The {activation} of the logits are probabilities."
)
_LICENCE = (
    "The names of classes with a wnid come from WordNet 3.0, Copyright 2006 by Princeton "
    "University, under its licence (<https://wordnet.princeton.edu/license-and-commercial-use>). "
    "Weights that were trained on ImageNet may be used as its terms of access allow: for "
    "non-commercial research and education. Weights of others keep their own licence."
)


def _resizing(settings: EvalSettings) -> str:
    size, resize = settings.img_size, settings.resize or settings.img_size
    if settings.mode == "squash":
        resized = f"resized to {resize} x {resize} pixels"
        if resize == size:
            return resized
    else:
        resized = f"the short side resized to {resize} pixels"
    rounded = "rounded down" if settings.margin == "floor" else "rounded to the even number"
    return f"{resized}, then the middle {size} x {size} (half of an odd margin is {rounded})"


def _readme(card: ModelCard, to: Target, notes: Sequence[str]) -> str:
    """Return the text for the export *to* of the model of *card*."""
    settings, args = card.eval_settings, card.args
    words = {
        **args,
        "mlp_dim": int(args.get("embed_dim", 0) * args["mlp_ratio"]),
    }
    description = _INPUT.format(
        resizing=_resizing(settings),
        interpolation=settings.interpolation,
        mean=settings.mean,
        std=settings.std,
        in_chans=args["in_chans"],
        img_size=settings.img_size,
        last=", channels last for Google's code" if to == "npz" else "",
        activation=card.activation,
    )
    sections = [
        f"# {card.name}, for {to}",
        (
            f"Exported by vit21k. {len(card.classes):,} classes, fingerprint "
            f"`{card.classes.fingerprint[:16]}`; `config.json` lists them (`label_names`) and "
            "every argument of the model."
        ),
        f"## Load\n\n```python\n{_LOAD[to].format(**words)}\n```",
        f"## Images\n\n{description}",
        *(["## Notes\n\n" + "\n".join(f"- {note}" for note in notes)] if notes else []),
        f"## Licence\n\n{_LICENCE}",
    ]
    return "\n\n".join(sections) + "\n"


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export_model` wrote.

    Attributes:
        card: Of the model.
        folder: The folder.
        files: Its files and their bytes.
        notes: Differences of the library, and what was assumed.
    """

    card: ModelCard
    folder: Path
    files: Mapping[str, int]
    notes: tuple[str, ...]


def export_model(
    source: str | Path,
    folder: Path,
    *,
    to: Target,
    preprocessing: Preprocessing = AS_FILES_SAY,
    choice: WeightsChoice = NO_CHOICE,
) -> ExportReport:
    """Write the model at *source* as *to* into *folder*.

    Next to the weights are ``config.json``, with classes and preparation of images, so that
    `load_model` restores every format except ONNX and torch.export; and a ``README.md`` that shows
    how to load it.

    Args:
        source: As for `load_model`.
        folder: A new folder.
        to: The format.
        preprocessing: How images are prepared, in place of what the files at *source* say.
        choice: The user's settings for the weights.

    Raises:
        UsageError: *folder* exists, or the format cannot represent the model.
        CheckpointError: There is no model at *source*.
        MissingExtraError: ONNX is wanted, and its packages are not installed.
        OSError: The disk is full or failing.
    """
    if folder.exists():
        raise UsageError(f"`{folder}` already exists", hint="name another with --out")
    opened = open_weights(source, preprocessing, choice)
    card = opened.card
    limits = check_limits(to, card.name, card.args)
    notes = (*card.warnings, *limits, *preprocessing_notes(to, card.eval_settings))
    with atomic_folder(folder) as partial:
        _WRITERS[to](partial, opened)
        if not (partial / CONFIG).exists():
            write_json(partial / CONFIG, _config_of(card))
        (partial / "README.md").write_text(_readme(card, to, notes), encoding="utf-8")
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportReport(card=card, folder=folder, files=files, notes=notes)


def _config_of(card: ModelCard) -> dict[str, Any]:
    return model_config(card.name, card.args, card.classes, card.eval_settings, card.loss_kind)


def _write_ours(folder: Path, opened: OpenedWeights) -> None:
    write_tensors(folder / WEIGHTS, opened.tensors)


def _write_torchvision(folder: Path, opened: OpenedWeights) -> None:
    write_tensors(folder / WEIGHTS, to_torchvision(opened.tensors))


def _write_transformers(folder: Path, opened: OpenedWeights) -> None:
    write_tensors(folder / WEIGHTS, to_transformers(opened.tensors))
    write_json(folder / CONFIG, _config_for_transformers(opened.card, _config_of(opened.card)))
    write_json(folder / "preprocessor_config.json", preprocessor(opened.card.eval_settings))


def _write_npz(folder: Path, opened: OpenedWeights) -> None:
    arrays = to_google(opened.tensors, opened.card.args["num_heads"])
    contents: dict[str, Any] = {
        name: np.ascontiguousarray(arrays[name].numpy()) for name in sorted(arrays)
    }
    np.savez(folder / "model.npz", **contents)


INPUT, OUTPUT = "pixel_values", "logits"
# A file of the ONNX format has at most 2 GB; the weights of larger models are in a second file.
_LARGEST_ONNX = 1_800_000_000
_NEEDED = ("onnx", "onnxscript")


def write_torch_export(folder: Path, opened: OpenedWeights) -> None:
    """Write ``model.pt2`` into *folder*; `torch.export.load` reads it without vit21k."""
    model, images, batch = _ready(opened)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")


def write_onnx(folder: Path, opened: OpenedWeights) -> None:
    """Write ``model.onnx`` into *folder*: input `pixel_values`, normalised; output `logits`.

    Raises:
        MissingExtraError: onnx and onnxscript are not installed.
    """
    for name in _NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"exporting to ONNX needs {name}, which is not installed",
                hint="install it with: pip install 'vit21k[train,export]'",
            ) from error
    model, images, batch = _ready(opened)
    num_bytes = sum(tensor.nbytes for tensor in opened.tensors.values())
    with _silence():
        torch.onnx.export(
            model,
            (images,),
            folder / "model.onnx",
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            external_data=num_bytes > _LARGEST_ONNX,
            verbose=False,
        )


def _ready(opened: OpenedWeights) -> tuple[ImageClassifier, Tensor, Any]:
    """Return the model, example images, and the symbol of the dimension that may vary."""
    args = opened.card.args
    with torch.device("meta"):
        model = build_model(args)
    model.load_state_dict(opened.tensors, assign=True)
    # Two images: torch treats 1 as a constant.
    images = torch.zeros(2, args["in_chans"], args["img_size"], args["img_size"])
    return model.eval().requires_grad_(requires_grad=False), images, torch.export.Dim("batch")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress what the exporter prints, logs and warns about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_WRITERS: Mapping[Target, Callable[[Path, OpenedWeights], None]] = {
    "timm": _write_ours,
    "safetensors": _write_ours,
    "torchvision": _write_torchvision,
    "transformers": _write_transformers,
    "npz": _write_npz,
    "torch-export": write_torch_export,
    "onnx": write_onnx,
}
