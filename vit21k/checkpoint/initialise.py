"""Trained weights -> first weights of a model, with other classes or another image size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from vit21k.checkpoint.model_folder import ModelCard, check_fit, digest_of_tensors
from vit21k.checkpoint.preprocessing import NOT_NEEDED
from vit21k.errors import CheckpointError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.models.pos_embed import ResizeMode, resize_pos_embed, resize_pos_map
from vit21k.models.registry import PIT_ARGUMENTS, VIT_ARGUMENTS
from vit21k.models.vit import ImageClassifier

if TYPE_CHECKING:
    from vit21k.checkpoint.foreign import OpenedWeights
    from vit21k.convert.arrays import Which


class MappedHead(NamedTuple):
    """Rows of a head in the order of another class list."""

    tensors: dict[str, Tensor]
    """`head.weight` and `head.bias`; of a distilled model, `head_dist.*` as well."""
    missing: tuple[str, ...]
    """Classes that the source does not have: their rows are those of *fresh*."""


def map_head(
    source: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    source_classes: ClassList,
    classes: ClassList,
) -> MappedHead:
    """Return the rows of the heads in *source* for *classes*, matched by wnid.

    Args:
        source: Weights with a head for *source_classes*.
        fresh: First weights with a head for *classes*: the rows without a match.
        source_classes: Of the rows in *source*.
        classes: Of the rows to return.

    Raises:
        UsageError: No class is in both lists.
    """
    row_of = {wnid: row for row, wnid in enumerate(source_classes.wnids)}
    wanted = [row for row, wnid in enumerate(classes.wnids) if wnid in row_of]
    if not wanted:
        raise UsageError(
            "no class of this run is among the classes of the weights "
            f"(theirs begin with `{source_classes.wnids[0]}`, these with `{classes.wnids[0]}`)",
            hint="name the classes of their head: `--init-classes google`, or a file",
        )
    taken = torch.tensor([row_of[classes.wnids[row]] for row in wanted])
    rows = torch.tensor(wanted)
    tensors = {}
    for name, before in source.items():
        if name.startswith(_HEADS):
            tensors[name] = fresh[name].clone()
            tensors[name][rows] = before[taken]
    missing = tuple(wnid for wnid in classes.wnids if wnid not in row_of)
    return MappedHead(tensors, missing)


_HEADS = ("head.", "head_dist.")


@dataclass(frozen=True, kw_only=True)
class InitSource:
    """The source of first weights.

    Attributes:
        path: As for `load_model`.
        head: "same-classes" copies the head if both have the same class list, and leaves it as
            initialised otherwise; "from-wnids" copies the rows of the classes that both have.
        classes: Of the outputs of the weights; None: those that their file names.
        weights: The raw weights or their average, where a file has both.
    """

    path: str | Path
    head: Literal["same-classes", "from-wnids"] = "same-classes"
    classes: ClassList | None = None
    weights: "Which | None" = None


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """What `initialise_from` did, by names of tensors.

    Attributes:
        source: The path of the weights.
        format: A key of `models.registry.FORMATS`.
        loaded: Copied unchanged.
        resized: Copied after a change of grid.
        mapped: Copied row by row, for the classes that both have.
        dropped: In the source only.
        initialised: In the model only: they keep their first values.
        num_rows: Rows of the head that were copied, of how many; None: it was not mapped.
        warnings: On damaged newer checkpoints of the source, and on what was assumed.
        origin: What `origin_of` returns.
    """

    source: Path
    format: str
    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    mapped: tuple[str, ...]
    dropped: tuple[str, ...]
    initialised: tuple[str, ...]
    num_rows: tuple[int, int] | None = None
    warnings: tuple[str, ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)

    def in_words(self) -> str:
        """Return the report in one line."""
        rest = {
            "resized": self.resized,
            "mapped by wnid": self.mapped,
            "dropped": self.dropped,
            "initialised anew": self.initialised,
            "warning": self.warnings,
        }
        parts = [f"{what}: {', '.join(names)}" for what, names in rest.items() if names]
        if self.num_rows is not None:
            parts.append("{:,} of {:,} classes keep their row of the head".format(*self.num_rows))
        origin = "" if self.format == "vit21k" else f" ({self.format})"
        loaded = f"{len(self.loaded)} tensors loaded from `{self.source}`{origin}"
        return "; ".join([loaded, *parts])


def initialise_from(
    model: ImageClassifier,
    source: str | Path | InitSource,
    *,
    args: Mapping[str, Any],
    classes: ClassList,
    pos_embed_mode: ResizeMode = "bicubic",
) -> InitReport:
    """Copy trained weights into *model*; see `InitSource` for the head.

    Pre-logits are copied if both have them.  Position embeddings are resized to the model's grid.

    Args:
        model: With first weights; overwritten in place.
        source: A path or address, as for `load_model`, with or without options.
        args: Every argument that *model* was built from.
        classes: Of the outputs of *model*.
        pos_embed_mode: See `resize_pos_embed`.

    Raises:
        CheckpointError: There is no model, it is damaged, or of another architecture.
        UsageError: Rows of the head are to be mapped, and no class is in both lists.
        OSError: An address cannot be read.
    """
    source = _as_source(source)
    opened = _opened(source, args)
    _check_architecture(opened.card, args)
    target, found = model.state_dict(), opened.tensors
    skipped = _skipped(opened, target, source, classes)
    kept = {name: tensor for name, tensor in found.items() if not name.startswith(skipped)}
    resized = _resize(kept, model, pos_embed_mode)
    wanted = {name: tensor for name, tensor in target.items() if not name.startswith(skipped)}
    check_fit(kept, wanted, opened.card.path)
    head = _mapped(opened, target, source, classes)
    copied = {**kept, **head.tensors}
    with torch.no_grad():
        for name, tensor in copied.items():
            target[name].copy_(tensor)
    return InitReport(
        source=opened.card.path,
        format=opened.format,
        loaded=tuple(name for name in kept if name not in resized),
        resized=resized,
        mapped=tuple(sorted(head.tensors)),
        dropped=tuple(sorted(found.keys() - copied.keys())),
        initialised=tuple(sorted(target.keys() - copied.keys())),
        num_rows=(len(classes) - len(head.missing), len(classes)) if head.tensors else None,
        warnings=(*opened.card.warnings, *_small_differences(opened.card, args)),
        origin=_origin(source, opened),
    )


def origin_of(source: str | Path | InitSource, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies first weights, whatever their path, as JSON values.

    Args:
        source: As for `initialise_from`.
        args: Of the model that starts with them.

    Returns:
        ``source`` and ``format``, for people; ``weights``, a digest of the tensors, ``head`` and
        ``classes``, a fingerprint of the class list of the outputs, which identify them.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        OSError: An address cannot be read.
    """
    source = _as_source(source)
    return _origin(source, _opened(source, args))


def _as_source(source: str | Path | InitSource) -> InitSource:
    return source if isinstance(source, InitSource) else InitSource(path=source)


def _opened(source: InitSource, args: Mapping[str, Any]) -> "OpenedWeights":
    from vit21k.checkpoint.foreign import WeightsChoice  # noqa: PLC0415 (imports every format)
    from vit21k.checkpoint.load import open_weights  # noqa: PLC0415

    choice = WeightsChoice(which=source.weights, fallback=_explicit(args))
    return open_weights(source.path, NOT_NEEDED, choice)


def _origin(source: InitSource, opened: "OpenedWeights") -> dict[str, Any]:
    return {
        "kind": "init",
        "source": str(opened.card.path),
        "format": opened.format,
        "weights": digest_of_tensors(opened.tensors),
        "head": source.head,
        "classes": (source.classes or opened.card.classes).fingerprint,
    }


def _check_architecture(card: ModelCard, args: Mapping[str, Any]) -> None:
    """Raise unless the weights of *card* have the same meaning in a model of *args*."""
    theirs, ours = _explicit(card.args), _explicit(args)
    # Weights without a head, such as MAE's, were never pooled.
    kinds = ("features", "pooling") if card.args["num_classes"] else ("features",)
    declared = {**PIT_ARGUMENTS, **VIT_ARGUMENTS}
    names = [name for name in {**theirs, **ours} if declared[name].decides in kinds]
    different = [name for name in names if theirs.get(name) != ours.get(name)]
    if different:
        here = ", ".join(f"{name} {card.args.get(name)}" for name in different)
        there = ", ".join(f"{name} {args.get(name)}" for name in different)
        changes = [f"--set model.{name}={json.dumps(card.args.get(name))}" for name in different]
        raise CheckpointError(
            f"`{card.path}` holds a model with {here}; the recipe asks for {there}",
            hint="set the fields of the recipe's `model` section to those of the checkpoint: "
            + " ".join(changes).replace('"', ""),
        )


def _explicit(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return *args* with the meaning of `fc_norm` None."""
    if "fc_norm" not in args or args["fc_norm"] is not None:
        return dict(args)
    return {**args, "fc_norm": args["global_pool"] == "avg"}


def _small_differences(card: ModelCard, args: Mapping[str, Any]) -> list[str]:
    names = ["norm_eps"] if args.get("resnet_layers") is None else ["norm_eps", "stem_eps"]
    return [
        f"their {name} is {card.args[name]}, the model's {args[name]}: "
        "logits differ in the last digits"
        for name in names
        if name in args and card.args[name] != args[name]
    ]


def _skipped(
    opened: "OpenedWeights", target: Mapping[str, Tensor], source: InitSource, classes: ClassList
) -> tuple[str, ...]:
    """Return the prefixes of tensors that are not copied.

    A head belongs to its class list and to what it reads, and so does a norm after the pooling.
    """
    if _has(opened.tensors, "fc_norm.") != _has(target, "fc_norm."):
        return (*_HEADS, "norm.", "fc_norm.", "attn_pool.")
    if _has(opened.tensors, "attn_pool.") != _has(target, "attn_pool."):
        return (*_HEADS, "attn_pool.")
    if _has(opened.tensors, "pre_logits.") != _has(target, "pre_logits."):
        if source.head == "from-wnids":
            raise UsageError(
                "the rows of the head cannot be copied: only one of the weights and the model has "
                "pre-logits, so that the heads read different features",
                hint="set model.representation_size as the weights have it",
            )
        return (*_HEADS, "pre_logits.")
    theirs = source.classes or opened.card.classes
    same = theirs.fingerprint == classes.fingerprint and source.head == "same-classes"
    return () if same else _HEADS


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _mapped(
    opened: "OpenedWeights", target: Mapping[str, Tensor], source: InitSource, classes: ClassList
) -> MappedHead:
    if source.head != "from-wnids":
        return MappedHead({}, ())
    theirs = source.classes or opened.card.classes
    num_rows = len(opened.tensors["head.weight"]) if "head.weight" in opened.tensors else 0
    if num_rows != len(theirs) or not num_rows:
        raise UsageError(
            f"the weights have a head of {num_rows:,} rows, and {len(theirs):,} classes are named",
            hint="give their class list: `--init-classes google`, or a file",
        )
    return map_head(opened.tensors, target, theirs, classes)


def _resize(
    tensors: dict[str, Tensor], model: ImageClassifier, mode: ResizeMode
) -> tuple[str, ...]:
    """Resize the position embedding in *tensors* to the grid of *model*; return its name if so."""
    before = tensors.get("pos_embed")
    if before is None or model.pos_embed is None or before.shape == model.pos_embed.shape:
        return ()
    if before.ndim == model.pos_embed.ndim == 4:  # noqa: PLR2004 (the map of a PiT)
        tensors["pos_embed"] = resize_pos_map(before, model.grid_size, mode=mode)
    else:
        tensors["pos_embed"] = resize_pos_embed(
            before,
            model.grid_size,
            num_prefix_tokens=getattr(model, "num_prefix_positions", 0),
            mode=mode,
        )
    return ("pos_embed",)
