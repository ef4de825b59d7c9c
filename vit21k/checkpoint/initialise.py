"""A trained model -> first weights of another: other classes, another image size."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vit21k.checkpoint.load import check_fit, locate_model
from vit21k.checkpoint.model_folder import WEIGHTS, ModelCard, read_model_card, read_tensors
from vit21k.errors import CheckpointError
from vit21k.manifest.classes import ClassList
from vit21k.models.pos_embed import resize_pos_embed
from vit21k.models.vit import VisionTransformer

# What must be equal for weights to mean the same.  Heads and GELU leave no trace in the shapes.
_SAME_ARGS = (
    "patch_size",
    "in_chans",
    "global_pool",
    "class_token",
    "fc_norm",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "act_layer",
)


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """What `initialise_from` did, by names of tensors.

    Attributes:
        source: The folder the weights came from.
        loaded: Taken as they are.
        resized: Taken after a change of grid.
        dropped: In the source only.
        initialised: In the model only: they keep their first values.
        warnings: What was wrong with newer checkpoints of the source.
    """

    source: Path
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def in_words(self) -> str:
        """Return the report in one line."""
        rest = {
            "resized": self.resized,
            "dropped": self.dropped,
            "initialised anew": self.initialised,
            "warning": self.warnings,
        }
        parts = [f"{what}: {', '.join(names)}" for what, names in rest.items() if names]
        return "; ".join([f"{len(self.loaded)} tensors loaded from `{self.source}`", *parts])


def initialise_from(
    model: VisionTransformer,
    path: str | Path,
    *,
    args: Mapping[str, Any],
    classes: ClassList,
    pos_embed_mode: Literal["bicubic", "bilinear_align_corners"] = "bicubic",
) -> InitReport:
    """Copy the weights of a trained model into *model*.

    The head is taken only if both are for the same class list; pre-logits only if both have them.
    Position embeddings are resized to the model's grid.

    Args:
        model: With first weights; overwritten in place.
        path: A run, a checkpoint, a model folder, or the ``model.safetensors`` in one.
        args: The arguments *model* was built from, all of them.
        classes: What the outputs of *model* mean.
        pos_embed_mode: See `resize_pos_embed`.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is of another architecture.
    """
    folder, warnings = locate_model(Path(path))
    card = read_model_card(folder)
    _check_architecture(card, args)
    source, target = read_tensors(folder / WEIGHTS), model.state_dict()

    left_out = _left_out(card, source, target, classes)
    kept = {name: tensor for name, tensor in source.items() if not name.startswith(left_out)}
    resized = _resize(kept, model, pos_embed_mode)
    wanted = {name: tensor for name, tensor in target.items() if not name.startswith(left_out)}
    check_fit(kept, wanted, folder / WEIGHTS)
    with torch.no_grad():
        for name, tensor in kept.items():
            target[name].copy_(tensor)
    return InitReport(
        source=folder,
        loaded=tuple(name for name in kept if name not in resized),
        resized=resized,
        dropped=tuple(sorted(source.keys() - kept.keys())),
        initialised=tuple(sorted(target.keys() - kept.keys())),
        warnings=warnings,
    )


def _check_architecture(card: ModelCard, args: Mapping[str, Any]) -> None:
    """Raise unless the weights of *card* mean in a model of *args* what they meant in their own."""
    different = [name for name in _SAME_ARGS if card.args.get(name) != args[name]]
    if different:
        here = ", ".join(f"{name} {card.args.get(name)}" for name in different)
        there = ", ".join(f"{name} {args[name]}" for name in different)
        raise CheckpointError(
            f"`{card.path}` holds a model with {here}; the recipe asks for {there}",
            hint="set the fields of the recipe's `model` section to those of the checkpoint",
        )


def _left_out(
    card: ModelCard, source: Mapping[str, Tensor], target: Mapping[str, Tensor], classes: ClassList
) -> tuple[str, ...]:
    """Return the prefixes of what is not copied: parts that one of the two lacks or must not have.

    A head belongs to its class list and to what it reads.
    """
    has_pre_logits = [
        any(name.startswith("pre_logits.") for name in tensors) for tensors in (source, target)
    ]
    if has_pre_logits[0] != has_pre_logits[1]:
        return ("head.", "pre_logits.")
    if card.classes.fingerprint != classes.fingerprint:
        return ("head.",)
    return ()


def _resize(tensors: dict[str, Tensor], model: VisionTransformer, mode: Any) -> tuple[str, ...]:
    """Fit the position embedding in *tensors* to the grid of *model*; return what was changed."""
    before = tensors.get("pos_embed")
    if before is None or before.shape == model.pos_embed.shape:
        return ()
    tensors["pos_embed"] = resize_pos_embed(
        before, model.grid_size, num_prefix_tokens=model.num_prefix_tokens, mode=mode
    )
    return ("pos_embed",)
