"""A head for one class list -> the same head for another: rows are matched by wnid.

Trained weights -> first weights of a model: other classes, another image size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vit21k.checkpoint.foreign import OpenedWeights, WeightsChoice
from vit21k.checkpoint.load import check_fit, open_weights
from vit21k.checkpoint.model_folder import ModelCard, digest_of_tensors
from vit21k.checkpoint.preprocessing import NOT_NEEDED
from vit21k.convert.arrays import Which
from vit21k.errors import CheckpointError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.models.pos_embed import ResizeMode, resize_pos_embed, resize_pos_map
from vit21k.models.vit import ImageClassifier


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
    """Return the rows of the heads in *source* that belong to *classes*.

    Args:
        source: Weights with a head for *source_classes*.
        fresh: First weights with a head for *classes*; rows without a match are taken from it.
        source_classes: What the rows of the head in *source* mean.
        classes: What the rows wanted mean.

    Raises:
        UsageError: No class is in both lists.
    """
    row_of = {wnid: row for row, wnid in enumerate(source_classes.wnids)}
    wanted = [row for row, wnid in enumerate(classes.wnids) if wnid in row_of]
    if not wanted:
        raise UsageError(
            "no class of this run is among the classes of the weights "
            f"(theirs begin with `{source_classes.wnids[0]}`, these with `{classes.wnids[0]}`)",
            hint="say what the rows of their head mean: `--init-classes google`, or a file",
        )
    taken = torch.tensor([row_of[classes.wnids[row]] for row in wanted])
    rows = torch.tensor(wanted)
    tensors = {}
    for name, before in source.items():
        if name.startswith(("head.", "head_dist.")):
            tensors[name] = fresh[name].clone()
            tensors[name][rows] = before[taken]
    missing = tuple(wnid for wnid in classes.wnids if wnid not in row_of)
    return MappedHead(tensors, missing)


# Arguments that may differ: heads are treated apart, positions are resized, dropout has no weights,
# and the small numbers of norms matter in the last digits alone.
_MAY_DIFFER = frozenset(
    {"img_size", "num_classes", "representation_size", "pos_drop_rate", "proj_drop_rate",
     "attn_drop_rate", "drop_path_rate", "drop_path_shape", "head_drop_rate", "norm_eps",
     "stem_eps", "init_values"}
)  # fmt: skip
_HEADS = ("head.", "head_dist.")
# What weights without a head, MAE's for one, say nothing of: nothing was ever pooled.
_POOLING = frozenset({"global_pool", "fc_norm"})


@dataclass(frozen=True, kw_only=True)
class InitSource:
    """Where first weights come from.

    Attributes:
        path: What `load_model` takes.
        head: "same-classes" takes the head if both are for the same class list, and leaves it
            fresh otherwise; "from-wnids" takes the rows of the classes that both have.
        classes: What the outputs of the weights mean; None: as their file says.
        weights: The raw weights or their average, where a file has both.
    """

    path: str | Path
    head: Literal["same-classes", "from-wnids"] = "same-classes"
    classes: ClassList | None = None
    weights: Which | None = None


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """What `initialise_from` did, by names of tensors.

    Attributes:
        source: Where the weights came from.
        format: Whose format it is, a key of `models.variants.FORMATS`.
        loaded: Taken as they are.
        resized: Taken after a change of grid.
        mapped: Taken row by row, for the classes that both have.
        dropped: In the source only.
        initialised: In the model only: they keep their first values.
        num_rows: Rows of the head that were taken, of how many; None: it was not mapped.
        warnings: What was wrong with newer checkpoints of the source, or had to be guessed.
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
    """Copy trained weights into *model*.

    The head is taken only if both are for the same class list, or row by row if *source* says so;
    pre-logits only if both have them.  Position embeddings are resized to the model's grid.

    Args:
        model: With first weights; overwritten in place.
        source: A path or address, as `load_model` takes it, or more of it.
        args: The arguments *model* was built from, all of them.
        classes: What the outputs of *model* mean.
        pos_embed_mode: See `resize_pos_embed`.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is of another architecture.
        UsageError: Rows of the head are to be mapped, and no class is in both lists.
        OSError: An address cannot be read.
    """
    if not isinstance(source, InitSource):
        source = InitSource(path=source)
    opened = _opened(source, args)
    _check_architecture(opened.card, args)
    target, found = model.state_dict(), opened.tensors
    skipped = _skipped(opened, target, source, classes)
    kept = {name: tensor for name, tensor in found.items() if not name.startswith(skipped)}
    resized = _resize(kept, model, pos_embed_mode)
    wanted = {name: tensor for name, tensor in target.items() if not name.startswith(skipped)}
    check_fit(kept, wanted, opened.card.path)
    head = _mapped(opened, target, source, classes)
    with torch.no_grad():
        for name, tensor in {**kept, **head.tensors}.items():
            target[name].copy_(tensor)
    copied = kept.keys() | head.tensors.keys()
    num_rows = (len(classes) - len(head.missing), len(classes)) if head.tensors else None
    return InitReport(
        source=opened.card.path,
        format=opened.format,
        loaded=tuple(name for name in kept if name not in resized),
        resized=resized,
        mapped=tuple(sorted(head.tensors)),
        dropped=tuple(sorted(found.keys() - copied)),
        initialised=tuple(sorted(target.keys() - copied)),
        num_rows=num_rows,
        warnings=(*opened.card.warnings, *_small_differences(opened.card, args)),
        origin=_origin(source, opened),
    )


def origin_of(source: str | Path | InitSource, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies first weights, whatever they are called, as JSON values.

    Args:
        source: As `initialise_from` takes it.
        args: Of the model that begins with them.

    Returns:
        ``source`` and ``format``, for people; ``weights``, a digest of the tensors, ``head`` and
        ``classes``, a fingerprint of what the outputs mean, which decide what a run begins with.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        OSError: An address cannot be read.
    """
    source = source if isinstance(source, InitSource) else InitSource(path=source)
    return _origin(source, _opened(source, args))


def _opened(source: InitSource, args: Mapping[str, Any]) -> OpenedWeights:
    # What the weights do not say of their model, the recipe says.
    choice = WeightsChoice(which=source.weights, fallback=_spelled_out(args))
    return open_weights(source.path, NOT_NEEDED, choice)


def _origin(source: InitSource, opened: OpenedWeights) -> dict[str, Any]:
    return {
        "kind": "init",
        "source": str(opened.card.path),
        "format": opened.format,
        "weights": digest_of_tensors(opened.tensors),
        "head": source.head,
        "classes": (source.classes or opened.card.classes).fingerprint,
    }


def _check_architecture(card: ModelCard, args: Mapping[str, Any]) -> None:
    """Raise unless the weights of *card* mean in a model of *args* what they meant in their own."""
    theirs, ours = _spelled_out(card.args), _spelled_out(args)
    may_differ = _MAY_DIFFER if card.args["num_classes"] else _MAY_DIFFER | _POOLING
    names = [name for name in {**theirs, **ours} if name not in may_differ]
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


def _spelled_out(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return *args* with what `fc_norm` None stands for."""
    if "fc_norm" not in args or args["fc_norm"] is not None:
        return dict(args)
    return {**args, "fc_norm": args["global_pool"] == "avg"}


def _small_differences(card: ModelCard, args: Mapping[str, Any]) -> list[str]:
    return [
        f"their {name} is {card.args[name]}, the model's {args[name]}: "
        "logits differ in the last digits"
        for name in ("norm_eps", "stem_eps")
        if name in args
        and card.args[name] != args[name]
        and (name == "norm_eps" or args["resnet_layers"] is not None)
    ]


def _skipped(
    opened: OpenedWeights, target: Mapping[str, Tensor], source: InitSource, classes: ClassList
) -> tuple[str, ...]:
    """Return the prefixes of what is not copied: parts that one of the two lacks or must not have.

    A head belongs to its class list and to what it reads, and so does a norm after the pooling.
    """
    if _has(opened.tensors, "fc_norm.") != _has(target, "fc_norm."):
        return (*_HEADS, "norm.", "fc_norm.")
    if _has(opened.tensors, "pre_logits.") != _has(target, "pre_logits."):
        if source.head == "from-wnids":
            raise UsageError(
                "the rows of the head cannot be taken over: the weights and the model do not both "
                "have pre-logits, so that the heads read different features",
                hint="set model.representation_size as the weights have it",
            )
        return (*_HEADS, "pre_logits.")
    theirs = source.classes or opened.card.classes
    same = theirs.fingerprint == classes.fingerprint and source.head == "same-classes"
    return () if same else _HEADS


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in tensors)


def _mapped(
    opened: OpenedWeights, target: Mapping[str, Tensor], source: InitSource, classes: ClassList
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


def _resize(tensors: dict[str, Tensor], model: ImageClassifier, mode: Any) -> tuple[str, ...]:
    """Fit the position embedding in *tensors* to the grid of *model*; return what was changed."""
    before = tensors.get("pos_embed")
    if before is None or before.shape == model.pos_embed.shape:
        return ()
    if before.ndim == model.pos_embed.ndim == 4:  # noqa: PLR2004 (the map of a PiT)
        tensors["pos_embed"] = resize_pos_map(before, model.grid_size, mode=mode)
    else:
        tensors["pos_embed"] = resize_pos_embed(
            before, model.grid_size, num_prefix_tokens=model.num_prefix_tokens, mode=mode
        )
    return ("pos_embed",)
