"""What other programs say of classes, beside their weights or by their custom.

Weights of other programs -> model card and tensors: a file, or a folder as they write it.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from vit21k.checkpoint.model_folder import CONFIG, ModelCard, parse_card, read_json
from vit21k.checkpoint.preprocessing import Preprocessing, find_preprocessing, override
from vit21k.convert.architecture import Architecture, infer_architecture
from vit21k.convert.arrays import Arrays, Container, Which, read_arrays
from vit21k.convert.formats import to_ours
from vit21k.errors import CheckpointError, UsageError
from vit21k.manifest.class_lists import KNOWN_LISTS, known_list
from vit21k.manifest.classes import ClassList

# What publishers of models mean by a head of this size: no two lists have the same.
_CUSTOMARY = {known.num_classes: known for known in KNOWN_LISTS.values()}
# The lists called "ImageNet-21K"; Google, PLSC and timm train them with sigmoids.
_SIZES_OF_21K = (21_841, 21_842, 21_843)


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
    return FoundClasses(known_list(known.name), f"{unknown}; taken for the list `{known.name}`")


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


def loss_kind_of(config: Mapping[str, Any], num_classes: int) -> Literal["sigmoid", "softmax"]:
    """Return what turns logits into probabilities: told, or by the custom of ImageNet-21K."""
    told = config.get("problem_type")
    if told is not None:
        return "sigmoid" if told == "multi_label_classification" else "softmax"
    return "sigmoid" if num_classes in _SIZES_OF_21K else "softmax"


_INDEX = "model.safetensors.index.json"
_MOST_CHARACTERS = 250  # of a file's name
_PUBLISHED = re.compile(r"([\w.]+)-([0-9a-f]{8,64})\.(?:pth|pt)")
# What a folder may hold, the best first.
_IN_FOLDER = ("model.safetensors", _INDEX, "model.npz", "pytorch_model.bin", "model.pdparams")

# What reading fields raises that are not what they should be.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class OpenedWeights(NamedTuple):
    """Weights, ready for a model of ours."""

    card: ModelCard
    tensors: dict[str, Tensor]
    """By our names, on the CPU, float32."""
    format: str
    """A key of `models.variants.FORMATS`."""
    dropped: tuple[str, ...] = ()
    """Tensors that belong to no model of ours, by their own names."""


@dataclass(frozen=True, kw_only=True)
class WeightsChoice:
    """What the user says of weights that do not say it themselves.

    Attributes:
        which: The raw weights or their average (EMA), where a file has both.
        args: Arguments of the model that no tensor shows, such as the number of heads.
        fallback: Arguments of the model that is to take the weights; they count where neither the
            weights nor *args* say anything.
    """

    which: Which | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    fallback: Mapping[str, Any] = field(default_factory=dict)


NO_CHOICE = WeightsChoice()


def open_foreign(
    path: Path, preprocessing: Preprocessing, choice: WeightsChoice = NO_CHOICE
) -> OpenedWeights:
    """Return the weights at *path*; format and architecture are found by looking.

    Args:
        path: A file of weights, or a folder of timm or transformers, or one that `vit21k export`
            wrote.  A ``config.json`` beside a file is read as well.
        preprocessing: What the caller says of how images are prepared.
        choice: What the weights do not say themselves.

    Raises:
        CheckpointError: There is none, it is damaged, or no model of ours has such weights.
        UsageError: Something that decides the logits is said nowhere.
    """
    file = weights_in(path) if path.is_dir() else path
    config = _read_config(file.with_name(CONFIG))
    read = _read_sharded if file.name == _INDEX else read_arrays
    arrays = read(file, choice.which)
    told = _merged(file, {**_published(file), **arrays.settings}, config)
    format_, converted = to_ours(arrays, told)
    own = _own_card(path, config)
    if own is not None:
        check_own(own, choice.args)
        own = override(replace(own, warnings=arrays.notes), preprocessing)
        return OpenedWeights(own, converted.tensors, format_, converted.dropped)
    try:
        found = infer_architecture(converted, choice.args, choice.fallback)
    except UsageError as error:
        raise UsageError(f"`{file}`: {error.message}", hint=error.hint) from error
    _check_colours(file, found.args)
    card = _card_of(path, file, format_, found, config, preprocessing)
    zero_head = filter(None, (_zero_head(converted.tensors),))
    card = replace(card, warnings=(*arrays.notes, *card.warnings, *zero_head))
    return OpenedWeights(card, converted.tensors, format_, converted.dropped)


def _card_of(
    path: Path,
    file: Path,
    format_: str,
    found: Architecture,
    config: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> ModelCard:
    """Return what is known of the weights: classes, preparation of images, what was assumed."""
    try:
        classes, guess = classes_of(config, found.args["num_classes"])
        settings, prepared = find_preprocessing(format_, found.args, config, file, preprocessing)
    except _MALFORMED as error:
        raise CheckpointError(
            f"a file beside `{file}` is damaged ({type(error).__name__}: {error!s:.200})",
            hint=f"`{CONFIG}` and `preprocessor_config.json` say what the classes are and how "
            "images are prepared",
        ) from error
    return ModelCard(
        path=path,
        name=found.name,
        args=found.args,
        classes=classes,
        eval_settings=settings,
        loss_kind=loss_kind_of(config, found.args["num_classes"]),
        warnings=(
            *found.assumed,
            *filter(None, (guess, prepared)),
        ),
    )


def _merged(file: Path, inside: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file itself and *config* beside it say of the model.

    Raises:
        CheckpointError: They name different architectures.
    """
    names = [str(told["architecture"]) for told in (inside, config) if "architecture" in told]
    if len({name.partition(".")[0] for name in names}) > 1:
        raise CheckpointError(
            f"`{file}` was saved as `{names[0]:.60}`, and its {CONFIG} names `{names[1]:.60}`",
            hint=f"remove the {CONFIG} that belongs to other weights",
        )
    return {**inside, **config}


def _published(file: Path) -> dict[str, Any]:
    """Return the architecture that the name of *file* says, if its own digest confirms the name.

    Publishers for torch.hub call a file ``<architecture>-<beginning of its SHA-256>.pth``.
    """
    match = _PUBLISHED.fullmatch(file.name)
    if match is None or not file.is_file():
        return {}
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"architecture": match[1]} if digest.startswith(match[2]) else {}


def check_own(card: ModelCard, args: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if *args* contradict what our own ``config.json`` says."""
    for key, value in args.items():
        if card.args.get(key) != value:
            raise UsageError(
                f"`--set model.{key}={value!s:.40}` contradicts `{card.path}`, "
                f"which says {card.args.get(key)!s:.40}",
                hint="leave it out",
            )


def _check_colours(file: Path, args: Mapping[str, Any]) -> None:
    if args["in_chans"] != 3:  # noqa: PLR2004 (red, green, blue)
        raise CheckpointError(
            f"`{file}` is a model of images of {args['in_chans']} channels; vit21k reads red, "
            "green and blue"
        )


def _zero_head(tensors: Mapping[str, Tensor]) -> str | None:
    """Return a warning if the head is all zeros, as in what Google published for ImageNet-21K."""
    head = tensors.get("head.weight")
    if head is None or head.any():
        return None
    return "the head of these weights is all zeros: they are for fine-tuning, not for predictions"


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
            hint="the `vit21k train` command that began it goes on with it",
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
    """Return the tensors of several files, which *index* lists."""
    content = read_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"`{index}` is damaged: it has no `weight_map`")
    if not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(f"`{index}` is damaged: its `weight_map` names no files")
    tensors: dict[str, Tensor] = {}
    container: Container = "safetensors"
    for name in sorted(set(where.values())):
        if not name or Path(name).name != name or len(name) > _MOST_CHARACTERS:
            raise CheckpointError(f"`{index}` names a file outside its folder: `{name!r:.80}`")
        if not name.isprintable():
            raise CheckpointError(f"`{index}` names a file that is no name: {name!r:.80}")
        part = read_arrays(index.with_name(name), which)
        tensors |= part.tensors
        container = part.container
    return Arrays(container=container, tensors=tensors)


def _own_card(path: Path, config: Mapping[str, Any]) -> ModelCard | None:
    """Return what `vit21k export` wrote beside weights in another program's format."""
    return parse_card(path, config) if "vit21k" in config else None
