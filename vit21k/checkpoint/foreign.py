"""Weights of other programs -> model card and tensors: a file, or a folder as they write it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from vit21k.checkpoint.foreign_settings import classes_of, loss_kind_of
from vit21k.checkpoint.model_folder import CONFIG, ModelCard, parse_card
from vit21k.checkpoint.preprocessing import Preprocessing, find_preprocessing, override
from vit21k.errors import CheckpointError
from vit21k.weights.architecture import infer_architecture
from vit21k.weights.arrays import Arrays, read_arrays
from vit21k.weights.formats import to_ours

_INDEX = "model.safetensors.index.json"
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


def open_foreign(path: Path, preprocessing: Preprocessing) -> OpenedWeights:
    """Return the weights at *path*; format and architecture are found by looking.

    Args:
        path: A file of weights, or a folder of timm or transformers, or one that `vit21k export`
            wrote.  A ``config.json`` beside a file is read as well.
        preprocessing: What the caller says of how images are prepared.

    Raises:
        CheckpointError: There is none, it is damaged, or no model of ours has such weights.
    """
    file = weights_in(path) if path.is_dir() else path
    config = _read_config(file.with_name(CONFIG))
    arrays = _read_sharded(file) if file.name == _INDEX else read_arrays(file)
    format_, converted = to_ours(arrays, config)
    own = _own_card(path, config)
    if own is not None:
        own = override(own, preprocessing)
        return OpenedWeights(own, converted.tensors, format_, converted.dropped)
    name, args, guesses = infer_architecture(converted.tensors, converted.known)
    try:
        classes, guess = classes_of(config, args["num_classes"])
        settings, assumed = find_preprocessing(format_, args, config, file, preprocessing)
    except _MALFORMED as error:
        raise CheckpointError(
            f"a file beside `{file}` is damaged ({type(error).__name__}: {error})",
            hint=f"`{CONFIG}` and `preprocessor_config.json` say what the classes are and how "
            "images are prepared",
        ) from error
    card = ModelCard(
        path=path,
        name=name,
        args=args,
        classes=classes,
        eval_settings=settings,
        loss_kind=loss_kind_of(config, args["num_classes"]),
        warnings=(*guesses, *filter(None, (guess, _zero_head(converted.tensors), assumed))),
    )
    return OpenedWeights(card, converted.tensors, format_, converted.dropped)


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
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"`{path}` is damaged: {error}") from error
    return config if isinstance(config, dict) else {}


def _read_sharded(index: Path) -> Arrays:
    """Return the tensors of several files, which *index* lists."""
    try:
        where: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(where.values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"`{index}` is damaged: {error}") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"`{index}` names a file outside its folder: `{name}`")
        tensors |= read_arrays(index.with_name(name)).tensors
    container: Literal["safetensors"] = "safetensors"
    return Arrays(container, tensors)


def _own_card(path: Path, config: Mapping[str, Any]) -> ModelCard | None:
    """Return what `vit21k export` wrote beside weights in another program's format."""
    return parse_card(path, config) if "vit21k" in config else None
