"""A file of weights, of vit21k or of another program -> tensors under our names and a model card.

Classes, preparation of images and loss are read from the files next to the weights; else they are
what publishers use for such weights, with a warning.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from vit21k.checkpoint.model_folder import CONFIG, ModelCard, parse_card, read_json
from vit21k.checkpoint.preprocessing import Preprocessing, find_preprocessing, override
from vit21k.convert.architecture import Architecture, infer_architecture
from vit21k.convert.arrays import Arrays, Which, read_arrays
from vit21k.convert.formats import to_ours
from vit21k.convert.naming import Converted
from vit21k.errors import CheckpointError, UsageError
from vit21k.manifest.class_lists import KNOWN_LISTS, known_list
from vit21k.manifest.classes import ClassList

# The list that publishers mean by a head of this size: no two lists have the same.
_CUSTOMARY = {known.num_classes: known for known in KNOWN_LISTS.values()}
# The lists called "ImageNet-21K"; Google, PLSC and timm train them with sigmoids.
_SIZES_OF_21K = (21_841, 21_842, 21_843)


class FoundClasses(NamedTuple):
    """The meaning of the outputs of foreign weights."""

    classes: ClassList
    guess: str | None = None
    """A sentence on the list that is assumed; None: a file names the classes."""


def classes_of(config: Mapping[str, Any], num_classes: int) -> FoundClasses:
    """Return the class list in *config*; else the one that publishers mean by this size.

    Where there is no such list, the name of a class is its index.

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
    elif isinstance(labels := config.get("labels"), list):  # timm 0.4 to 0.6
        texts = tuple(map(str, labels))
        found = ClassList(_wnids_named(texts), texts)
    elif labels := config.get("id2label"):
        texts = tuple(str(labels[key]) for key in sorted(labels, key=int))
        found = ClassList(_wnids_named(texts), texts)
    else:
        return _customary(num_classes)
    if len(found) != num_classes:
        raise CheckpointError(f"{len(found)} class names for a head of {num_classes}")
    return FoundClasses(found)


def _customary(num_classes: int) -> FoundClasses:
    known = _CUSTOMARY.get(num_classes)
    if known is None:
        return FoundClasses(ClassList(_indices(num_classes)))
    unknown = f"nothing says what the {num_classes:,} outputs mean"
    return FoundClasses(known_list(known.name), f"{unknown}; assumed: the list `{known.name}`")


def _wnids_named(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the wnids of a known list whose classes have these names, else indices."""
    customary = _CUSTOMARY.get(len(texts))
    if customary is not None:
        known = known_list(customary.name)
        pairs = zip(texts, known.names, strict=True)
        if sum(_lemma(text) == _lemma(other or "") for text, other in pairs) > len(texts) // 2:
            return known.wnids
    return _indices(len(texts))


def _lemma(text: str) -> str:
    return text.partition(",")[0].strip().lower()


def _indices(num_classes: int) -> tuple[str, ...]:
    return tuple(map(str, range(num_classes)))


def _loss_kind(config: Mapping[str, Any], num_classes: int) -> Literal["sigmoid", "softmax"]:
    """Return the loss that *config* names; else the one that is usual for ImageNet-21K, or not."""
    named = config.get("problem_type")
    if named is not None:
        return "sigmoid" if named == "multi_label_classification" else "softmax"
    return "sigmoid" if num_classes in _SIZES_OF_21K else "softmax"


_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_MAX_NAME = 250  # characters
_PUBLISHED = re.compile(r"([\w.]+)-([0-9a-f]{8,64})\.(?:pth|pt)")
# Files of weights in a folder, the best first.
_IN_FOLDER = ("model.safetensors", _INDICES[0], "model.npz", "pytorch_model.bin", _INDICES[1],
              "model.pdparams")  # fmt: skip
_MAX_LISTED = 8
# What reading malformed fields raises.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class OpenedWeights(NamedTuple):
    """Weights, ready for one of our models."""

    card: ModelCard
    tensors: dict[str, Tensor]
    """By our names, on the CPU, float32."""
    format: str
    """A key of `models.registry.FORMATS`."""


@dataclass(frozen=True, kw_only=True)
class WeightsChoice:
    """The user's settings for weights.

    Attributes:
        which: The raw weights or their average (EMA), where a file has both.
        args: Arguments of the model that no tensor shows, such as the number of heads.
        fallback: Arguments of the model that will have the weights, for those that neither the
            weights nor *args* decide.
    """

    which: Which | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    fallback: Mapping[str, Any] = field(default_factory=dict)


NO_CHOICE = WeightsChoice()


def open_weight_file(
    path: Path, file: Path, preprocessing: Preprocessing, choice: WeightsChoice
) -> OpenedWeights:
    """Return the weights in *file*, whose format and architecture are detected.

    Args:
        path: What the user named: *file*, or its folder.
        file: The weights; a ``config.json`` next to it is read as well.
        preprocessing: How the caller wants images to be prepared.
        choice: Settings of the user.

    Raises:
        CheckpointError: It is damaged, or none of our models has such weights.
        UsageError: Nothing decides an argument that changes the logits.
    """
    config = _read_config(file.with_name(CONFIG))
    read = _read_sharded if file.name in _INDICES else read_arrays
    arrays = read(file, choice.which)
    own = None
    if "vit21k" in config:
        own = override(parse_card(file.parent, config), preprocessing)
        own = replace(own, warnings=arrays.notes)
        _check_own(own, choice.args)
        if arrays.container == "safetensors" and _has_our_names(arrays):
            return OpenedWeights(own, arrays.tensors, "vit21k")
    merged = _merged(file, arrays.settings, config)
    format_, converted = to_ours(arrays, merged)
    if own is not None:  # an export in the format of another program
        return OpenedWeights(own, converted.tensors, format_)
    try:
        found = infer_architecture(converted, choice.args, choice.fallback)
    except UsageError as error:
        raise UsageError(f"`{file}`: {error.message}", hint=error.hint) from error
    if found.args["in_chans"] != 3:  # noqa: PLR2004 (red, green, blue)
        raise CheckpointError(
            f"`{file}` is a model of images of {found.args['in_chans']} channels; vit21k reads "
            "red, green and blue"
        )
    card = _card_of(path, file, format_, found, merged, preprocessing)
    warnings = (*arrays.notes, *card.warnings, *_warnings(converted))
    return OpenedWeights(replace(card, warnings=warnings), converted.tensors, format_)


def _has_our_names(arrays: Arrays) -> bool:
    return any(name.startswith("patch_embed.") for name in arrays.tensors)


def _warnings(converted: Converted) -> Iterator[str]:
    head = converted.tensors.get("head.weight")
    if head is not None and not head.any():  # as in what Google published for ImageNet-21K
        yield "the head of these weights is all zeros: they are for fine-tuning, not for prediction"
    if converted.dropped:
        listed = ", ".join(f"{name:.60}" for name in converted.dropped[:_MAX_LISTED])
        more = len(converted.dropped) - _MAX_LISTED
        listed += f" and {more:,} more" if more > 0 else ""
        yield f"tensors that no model here has were skipped: {listed}"


def _card_of(
    path: Path,
    file: Path,
    format_: str,
    found: Architecture,
    config: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> ModelCard:
    try:
        classes, guess = classes_of(config, found.args["num_classes"])
        settings, assumed = find_preprocessing(format_, found.args, config, file, preprocessing)
    except _MALFORMED as error:
        raise CheckpointError(
            f"a file next to `{file}` is damaged ({type(error).__name__}: {error!s:.200})",
            hint=f"`{CONFIG}` and `preprocessor_config.json` define the classes and how images are "
            "prepared",
        ) from error
    return ModelCard(
        path=path,
        name=found.name,
        args=found.args,
        classes=classes,
        eval_settings=settings,
        loss_kind=_loss_kind(config, found.args["num_classes"]),
        warnings=(*found.assumed, *filter(None, (guess, assumed))),
    )


def _merged(file: Path, inside: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of *config*, and those in the file itself and in its name.

    Raises:
        CheckpointError: They name different architectures.
    """
    inside = {**_published(file), **inside}
    names = [
        str(settings["architecture"]) for settings in (inside, config) if "architecture" in settings
    ]
    if len({name.partition(".")[0] for name in names}) > 1:
        raise CheckpointError(
            f"`{file}` was saved as `{names[0]:.60}`, and its {CONFIG} names `{names[1]:.60}`",
            hint=f"remove the {CONFIG} that belongs to other weights",
        )
    return {**inside, **config}


def _published(file: Path) -> dict[str, Any]:
    """Return the architecture in the name of *file*, if its digest confirms the name.

    Publishers for torch.hub name a file ``<architecture>-<beginning of its SHA-256>.pth``.
    """
    match = _PUBLISHED.fullmatch(file.name)
    if match is None:
        return {}
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"architecture": match[1]} if digest.startswith(match[2]) else {}


def _check_own(card: ModelCard, args: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if *args* contradict our own ``config.json``."""
    for key, value in args.items():
        if card.args.get(key) != value:
            raise UsageError(
                f"`--set model.{key}={value!s:.40}` contradicts `{card.path}`, "
                f"which says {card.args.get(key)!s:.40}",
                hint="remove the option",
            )


def weights_in(folder: Path) -> Path:
    """Return the file of weights in *folder*.

    Raises:
        CheckpointError: There is none.
    """
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
    if (folder / "run.json").is_file():
        raise CheckpointError(
            f"the run in `{folder}` has no checkpoint yet",
            hint="the `vit21k train` command that started it resumes it",
        )
    raise CheckpointError(
        f"no model in `{folder}`: there is none of {', '.join(_IN_FOLDER)}",
        hint="give a run, a checkpoint, a model folder, or a file of weights",
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(config, dict):
        raise CheckpointError(f"`{path}` is damaged: it holds a {type(config).__name__}")
    return config


def _read_sharded(index: Path, which: Which | None) -> Arrays:
    """Return the tensors of the files in *index*."""
    content = read_json(index)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"`{index}` is damaged: it has no `weight_map`")
    names = set(files.values()) if all(isinstance(n, str) for n in files.values()) else {""}
    for name in names:
        if not name or Path(name).name != name or len(name) > _MAX_NAME or not name.isprintable():
            raise CheckpointError(f"`{index}` names a file outside its folder: {name!r:.80}")
    shards = [read_arrays(index.with_name(name), which) for name in sorted(names)]
    tensors = {key: tensor for shard in shards for key, tensor in shard.tensors.items()}
    return Arrays(container=shards[-1].container, tensors=tensors)
