"""A model as a folder: ``config.json`` and ``model.safetensors``, as timm writes and reads it.

`timm.create_model("local-dir:DIR", pretrained=True)` gives the same logits, and so does
transformers' wrapper around timm.  Settings without a key in timm are under the key ``vit21k``.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vit21k.errors import CheckpointError, ManifestError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.models.cost import is_pit, pit_widths
from vit21k.models.registry import PIT_ARGUMENTS, VIT_ARGUMENTS, model_args

_UNKNOWN_TO_TIMM = (
    "vit_small_patch8_384",
    "vit_base_patch8_384",
    "vit_large_patch14_384",
    "vit_huge_patch14_384",
    "vit_giant_patch14_384",
    "vit_gigantic_patch14_384",
    "vit_base_r26_s32_384",
)


_NEWER = ("reg_tokens", "no_embed_class", "pos_embed", "pre_norm", "qk_norm", "norm_layer")


def timm_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of *args* that timm's constructor has as well, under the same names."""
    declared = PIT_ARGUMENTS if is_pit(args) else VIT_ARGUMENTS
    shared = {key: value for key, value in args.items() if declared[key].in_timm}
    if is_pit(args):
        shared.pop("act_layer")  # timm's PiT has the exact GELU only; see `timm_name`
        return shared
    if args["fc_norm"] is None:
        shared.pop("fc_norm")
    # Skipped where they change nothing, for the versions of timm that do not have them.
    unused = [key for key in _NEWER if shared[key] == VIT_ARGUMENTS[key].default]
    return {key: value for key, value in shared.items() if key not in unused}


def timm_name(name: str, args: Mapping[str, Any]) -> str:
    """Return the name under which timm builds this model from its arguments.

    Options that timm would drop silently, and give other logits, become part of the name: timm
    refuses it, because it has no such model.
    """
    # The sizes are in the arguments, so a name of the same shape is enough.
    name = name.replace("_384", "_224") if name in _UNKNOWN_TO_TIMM else name
    if is_pit(args):
        return f"{name}_with_gelu_tanh" if args["act_layer"] != "gelu" else name
    if args["distilled"]:
        return "deit_base_distilled_patch16_224"
    lacking = {
        "swiglu": args["mlp_layer"] == "swiglu",
        "rope": args["rope"] != "none",
        "token_avg_pooling": args["global_pool"] == "token_avg",
        "pre_logits": args["representation_size"] is not None,
        "another_resnet": args["resnet_layers"] != model_args(name)["resnet_layers"],
    }
    return "_with_".join([name, *(part for part, is_there in lacking.items() if is_there)])


def first_conv(args: Mapping[str, Any]) -> str:
    """Return timm's name of the first convolution."""
    if is_pit(args):
        return "patch_embed.conv"
    hybrid = args["resnet_layers"] is not None
    return "patch_embed.backbone.stem.conv" if hybrid else "patch_embed.proj"


CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_VERSION = 2
_ALLOWED: Mapping[str, tuple[str, ...]] = {
    "mode": ("center_crop", "squash"),
    "interpolation": ("bicubic", "bilinear"),
    "margin": ("round", "floor"),
}
# The config.json of 21,843 classes with their names has 2 MB.
_MAX_JSON_BYTES = 64 << 20
# Resized images take memory; no model crops such a small part of them.
_MOST_PIXELS, _MOST_TIMES = 8192, 32


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How an image is prepared for a model.

    Attributes:
        img_size: Side of the model's input, in pixels.
        mode: Resize the short side and crop the middle, or resize to a square.
        resize: The short side before the crop (squash: both sides), in pixels; None: *img_size*.
        interpolation: Of the resizing.
        mean: Subtracted from red, green, blue in 0..1.
        std: Red, green, blue are divided by it afterwards.
        margin: Rounding of half an odd margin around the crop: to the even number (torchvision,
            timm), or down (transformers).
    """

    img_size: int
    mode: Literal["center_crop", "squash"]
    resize: int | None
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    margin: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        """Raise a `ValueError` for values of a file that are not allowed."""
        for name, allowed in _ALLOWED.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"eval.{name} is {value!r:.60}, none of {', '.join(allowed)}")
        if type(self.img_size) is not int or not 1 <= self.img_size <= _MOST_PIXELS:
            raise ValueError(f"eval.img_size is {self.img_size!r:.60}")
        resize, most = self.resize, _MOST_TIMES * self.img_size
        if resize is not None and (type(resize) is not int or not 1 <= resize <= most):
            raise ValueError(f"eval.resize is {resize!r:.60}, not 1 to {most:,}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError("eval.mean and eval.std must be finite numbers, std over 0")

    @property
    def crop_pct(self) -> float:
        """The fraction from which timm computes the size before the crop.

        timm rounds ``img_size / crop_pct`` down.  Where rounding of the quotient gives one pixel
        less, the next smaller number is returned.
        """
        resize = self.resize or self.img_size
        fraction = self.img_size / resize
        while math.floor(self.img_size / fraction) < resize:
            fraction = math.nextafter(fraction, 0)
        return fraction


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """A model's architecture, classes and preparation of images.

    Attributes:
        path: The folder.
        name: Architecture, one of `list_models()`.
        args: Every argument of the constructor.
        classes: Of the outputs.
        eval_settings: How an image is prepared.
        loss_kind: The loss it was trained with.
        warnings: On damaged newer checkpoints of the same run, and on what was assumed.
    """

    path: Path
    name: str
    args: Mapping[str, Any]
    classes: ClassList
    eval_settings: EvalSettings
    loss_kind: Literal["sigmoid", "softmax"]
    warnings: tuple[str, ...] = ()

    @property
    def activation(self) -> Literal["sigmoid", "softmax"]:
        """The function from logits to probabilities."""
        return self.loss_kind


def check_head(card: ModelCard) -> None:
    """Raise a `UsageError` if the model of *card* has no head, and so no classes."""
    if not card.args["num_classes"]:
        raise UsageError(
            f"the weights in `{card.path}` have no head: they name no classes",
            hint="`vit21k features` writes their features; "
            "`vit21k train --stage finetune --init` trains a head on them",
        )


def model_config(
    name: str,
    args: Mapping[str, Any],
    classes: ClassList,
    eval_settings: EvalSettings,
    loss_kind: Literal["sigmoid", "softmax"],
) -> dict[str, Any]:
    """Return the content of ``config.json``.

    The arguments are those of `ModelCard`.
    """
    args = {**args, "num_classes": len(classes)}
    return {
        "architecture": timm_name(name, args),
        "num_classes": len(classes),
        "num_features": pit_widths(args)[-1] if is_pit(args) else args["embed_dim"],
        "global_pool": args["global_pool"],
        "model_args": timm_args(args),
        "label_names": list(classes.wnids),
        "label_descriptions": {
            wnid: text for wnid, text in zip(classes.wnids, classes.names, strict=True) if text
        },
        "pretrained_cfg": _pretrained_cfg(args, eval_settings),
        "vit21k": {
            "version": _VERSION,
            "name": name,
            "args": args,
            "classes": classes.fingerprint,
            "eval": asdict(eval_settings),
            "loss_kind": loss_kind,
        },
    }


def write_model_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    """Write both files into *folder*, which exists.

    Raises:
        OSError: The disk is full or failing.
    """
    write_tensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write *content* as JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a small JSON file.

    Raises:
        CheckpointError: It is damaged, nested too deeply, or far too large to describe a model.
        FileNotFoundError: There is none.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"`{path}` is damaged: it is {path.stat().st_size:,} bytes long")
        return json.loads(path.read_bytes())
    except RecursionError:
        raise CheckpointError(f"`{path}` is damaged: it is nested too deeply") from None
    except ValueError as error:
        raise CheckpointError(f"`{path}` is damaged: {error!s:.120}") from error


def read_model_card(folder: Path) -> ModelCard:
    """Return the card in ``config.json`` of *folder*.

    Raises:
        CheckpointError: It is missing, damaged, another program's, or a later version's.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"no model in `{folder}`: there is no {CONFIG}",
            hint="give a run, a checkpoint, or a folder that vit21k wrote",
        ) from None
    return parse_card(folder, config)


def parse_card(folder: Path, config: Any) -> ModelCard:
    """Return the card in *config*, the content of ``config.json`` in *folder*.

    Raises:
        CheckpointError: It is damaged, another program's, or a later version's.
    """
    path = folder / CONFIG
    try:
        own = config["vit21k"]
        if own["version"] > _VERSION:
            raise CheckpointError(
                f"`{path}` was written by a later vit21k (layout {own['version']}; "
                f"this one reads {_VERSION})",
                hint="upgrade vit21k",
            )
        card = _parse(folder, config, own)
    except (ValueError, KeyError, TypeError, AttributeError, ManifestError, UsageError) as error:
        raise CheckpointError(
            f"`{path}` is damaged or was not written by vit21k ({type(error).__name__}: "
            f"{error!s:.200})"
        ) from error
    if card.classes.fingerprint != own.get("classes"):
        raise CheckpointError(f"`{path}` is damaged: its class list does not match its fingerprint")
    return card


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write *tensors* as safetensors; the same tensors give the same bytes.

    Raises:
        OSError: The disk is full or failing.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # It wraps the system's error: "... (os error 28)".
        if match := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(match[1]), str(error), str(path)) from error
        raise


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"`{path}` is missing") from None
    except SafetensorError as error:
        raise CheckpointError(f"`{path}` is damaged: {error}") from error
    return tensors


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the xxh3_128 of the names, shapes and values of *tensors*, in hex."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pretrained_cfg(args: Mapping[str, Any], settings: EvalSettings) -> dict[str, Any]:
    return {
        "tag": "vit21k",
        "input_size": [args["in_chans"], settings.img_size, settings.img_size],
        "fixed_input_size": True,
        "interpolation": settings.interpolation,
        "crop_pct": settings.crop_pct,
        "crop_mode": "squash" if settings.mode == "squash" else "center",
        "mean": list(settings.mean),
        "std": list(settings.std),
        "num_classes": args["num_classes"],
        "first_conv": first_conv(args),
        "classifier": ["head", "head_dist"] if args.get("distilled") else "head",
    }


def _parse(folder: Path, config: Mapping[str, Any], own: Mapping[str, Any]) -> ModelCard:
    wnids, names = config["label_names"], config["label_descriptions"]
    if not all(isinstance(text, str) for text in (*wnids, *names.values())):
        raise ValueError("a class that is not text")
    settings = {**own["eval"], "mean": tuple(own["eval"]["mean"]), "std": tuple(own["eval"]["std"])}
    return ModelCard(
        path=folder,
        name=own["name"],
        args=model_args(own["name"], **own["args"]),
        classes=ClassList(tuple(wnids), tuple(names.get(wnid) for wnid in wnids)),
        eval_settings=EvalSettings(**settings),
        loss_kind=own["loss_kind"],
    )


def check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Check that *found* has the names and shapes of *wanted*.

    Raises:
        CheckpointError: It has not; the message names the first difference of each kind.
    """
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(f"{len(missing)} tensors are missing, `{missing[0]}` first")
    if unknown := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(unknown)} are unknown, `{unknown[0]}` first")
    for name in sorted(found.keys() & wanted.keys()):
        if found[name].shape != wanted[name].shape:
            here, there = tuple(found[name].shape), tuple(wanted[name].shape)
            problems.append(f"`{name}` has shape {here}, the model {there}")
            break
    if problems:
        raise CheckpointError(f"`{path}` does not fit the model: {'; '.join(problems)}")
