"""Options that several commands share, and how their help is laid out."""

import codecs
import inspect
import os
import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.errors import MissingExtraError, UsageError, one_line
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.checkpoint.preprocessing import Preprocessing
    from vit21k.data.dataset import ImageRows
    from vit21k.models.vit import ImageClassifier
    from vit21k.sources.folders import Skipped


def join_paragraphs(app: typer.Typer) -> None:
    """Take the help of every command of *app* from its docstring, each paragraph one line."""
    for command in app.registered_commands:
        if command.callback is not None and command.help is None:
            command.help = joined(inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            join_paragraphs(group.typer_instance)


def joined(text: str) -> str:
    """Return *text* with the lines of each paragraph joined, but for those that are indented."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else paragraph.replace("\n", " ")
        for paragraph in paragraphs
    )


INSTALL_TRAIN = "pip install 'vit21k[train]'"
INSTALL_SERVE = "pip install 'vit21k[serve]'"


def require_torch(command: str) -> None:
    """Check that *command* can import torch and safetensors.

    Raises:
        MissingExtraError: One of them is not installed, or is broken.
    """
    try:
        for name in ("torch", "safetensors"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`vit21k {command}` needs {error.name}, which is not installed",
            hint=f"install it with: {INSTALL_TRAIN}",
        ) from error
    except (ImportError, OSError) as error:  # a shared library is missing, or is another version's
        raise MissingExtraError(
            f"`vit21k {command}` needs torch, which cannot be imported: {error}",
            hint=f"`vit21k doctor` looks closer; or install it anew: {INSTALL_TRAIN}",
        ) from error


def require_serving(command: str, *, install: str = INSTALL_SERVE) -> None:
    """Check that *command* can import the web server; *install* installs it.

    Raises:
        MissingExtraError: A part of it is not installed.
    """
    try:
        for name in ("starlette", "uvicorn"):
            import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`vit21k {command}` needs {error.name}, which is not installed",
            hint=f"install it with: {install}",
        ) from error


PREPARE_PANEL = "Prepare the data (in this order)"

Manifests = Annotated[
    Path,
    typer.Option(
        "--manifests",
        metavar="DIR",
        envvar="VIT21K_MANIFESTS",
        help="Folder of the manifests.",
    ),
]
DEFAULT_MANIFESTS = Path("data_manifests")


def for_manifests(command: str, manifests: Path) -> str:
    """Return *command* as it is to be typed next, by whoever named *manifests* for this one."""
    if str(manifests) == os.environ.get("VIT21K_MANIFESTS", str(DEFAULT_MANIFESTS)):
        return command
    return f"{command} --manifests {shlex.quote(str(manifests))}"


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout.")]

LabelSource = Annotated[
    Literal["folder", "top"] | None,
    typer.Option(
        "--label-from",
        help="The class of an image: the folder (or tar) it lies in, or the first one below ROOT.",
        show_default="folder, if the names can be those of classes",
    ),
]

ImageRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        envvar="VIT21K_ROOT",
        help="Where the images are now, if the tree has moved since it was hashed.",
    ),
]

OnEngine = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine", help="Where the work is done: on this machine, or a Ray cluster."),
]
OnAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Of the Ray cluster; default: RAY_ADDRESS, or this machine.",
    ),
]


def is_on_ray(engine: str, address: str | None) -> bool:
    """Return whether Ray is asked for; refuse an address without it."""
    if address and engine != "ray":
        raise UsageError("`--address` is of a Ray cluster", hint="add `--engine ray`")
    return engine == "ray"


Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; default: the GPU if there is one.")
]
NumWorkers = Annotated[
    int | None, typer.Option(min=1, help="Decoding threads; default: the cores, at most 16.")
]
_MOST_WORKERS = 16


def device_or_best(device: str | None) -> str:
    """Return *device*, checked; if it is None, the GPU if there is one.

    Raises:
        UsageError: torch has no such device here.
    """
    import torch

    from vit21k.errors import UsageError

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"cannot compute on `{device}`: {reason}", hint="`vit21k doctor` shows what there is"
        ) from error
    return device


def workers_or_cores(num_workers: int | None) -> int:
    """Return *num_workers*; if it is None, the cores this process may use, at most 16."""
    return num_workers or min(_MOST_WORKERS, num_threads())


_BYTES = 1_000_000


def local_copy(path: str | os.PathLike[str]) -> str:
    """Return *path*; if it is an address, where its copy lies, fetched if need be.

    Raises:
        CheckpointError: There is no such file, or what came is damaged.
        OSError: The server cannot be reached.
    """
    from vit21k.convert.download import fetch, is_address

    text = os.fspath(path)
    if not is_address(text):
        return text
    with console.progress("download", unit="MB") as progress:

        def tell(num_bytes: int, total: int | None) -> None:
            progress.total = total // _BYTES if total else None
            progress.advance(num_bytes // _BYTES - progress.num_done)

        copy = fetch(text, tell=tell)
    console.note(f"`{text}` lies in `{copy}`")
    return str(copy)


USE_PANEL = "Use a trained model"

RunPath = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run (its newest checkpoint), a checkpoint, a model folder, weights of another "
        "program, or an address.",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Of the matrix products; auto: bf16 on a GPU that has it."),
]
Mean = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        metavar="R G B",
        help="Subtracted from the colours in 0..1; default: as the model's files say. A warning "
        "names what is assumed if they say nothing.",
    ),
]
Std = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="The colours are divided by it afterwards."),
]
CropPct = Annotated[
    float | None,
    typer.Option(
        min=0.04,
        max=1,
        help="Side of the crop as a fraction of the resized short side, as in timm.",
    ),
]
CropMode = Annotated[
    Literal["center", "squash"] | None,
    typer.Option(help="center: resize the short side, crop the middle; squash: resize both sides."),
]
Interpolation = Annotated[
    Literal["bicubic", "bilinear"] | None, typer.Option(help="Of the resizing.")
]
DeviceBatchSize = Annotated[int, typer.Option(min=1, help="The most images in one forward pass.")]
ModelSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="model.FIELD=VALUE",
        help="What the weights do not say of their model: model.num_heads=6; repeatable.",
    ),
]
WhichWeights = Annotated[
    Literal["raw", "ema"] | None,
    typer.Option(
        "--weights", help="The last step's weights or their moving average, where both are there."
    ),
]


def preprocessing(
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    crop_pct: float | None,
    crop_mode: Literal["center", "squash"] | None,
    interpolation: Literal["bicubic", "bilinear"] | None,
) -> "Preprocessing":
    """Return what the options say of how images are prepared.

    Raises:
        UsageError: A number is not finite, or a deviation is not positive.
    """
    import math

    from vit21k.checkpoint.preprocessing import Preprocessing

    if not all(map(math.isfinite, (*(mean or ()), *(std or ())))):
        raise UsageError("--mean and --std are three finite numbers each")
    if std is not None and min(std) <= 0:
        raise UsageError(f"--std divides, and {min(std):g} is not positive")
    return Preprocessing(
        mean=mean, std=std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation
    )


def choice_of(settings: list[str] | None, weights: Literal["raw", "ema"] | None) -> "WeightsChoice":
    """Return what the options say of weights that do not say it themselves.

    Raises:
        UsageError: A setting is not ``model.FIELD=VALUE``.
    """
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.recipe.load import assign

    values: dict[str, Any] = {}
    for setting in settings or []:
        assign(values, setting)
    model = values.pop("model", {})
    if values or not isinstance(model, dict):
        raise UsageError(
            "--set takes model.FIELD=VALUE here, what the weights do not say of their model",
            hint="for example: --set model.num_heads=N",
        )
    return WeightsChoice(which=weights, args=model)


def load(
    run: str, device: str | None, how: "Preprocessing", choice: "WeightsChoice"
) -> "tuple[ImageClassifier, ModelCard]":
    """Load the model of *run*; warn of what is wrong or assumed."""
    from vit21k.checkpoint.load import load_model

    model, card = load_model(
        local_copy(run),
        device=device_or_best(device),
        preprocessing=how,
        weights=choice.which,
        model_args=choice.args,
    )
    for warning in card.warnings:
        console.warn(warning)
    return model, card


def load_classifier(
    run: str, device: str | None, how: "Preprocessing", choice: "WeightsChoice"
) -> "tuple[ImageClassifier, ModelCard]":
    """Load the model of *run*, as `load`, if it has a head.

    Raises:
        UsageError: It has none.
    """
    from vit21k.checkpoint.model_folder import check_head

    model, card = load(run, device, how, choice)
    check_head(card)
    return model, card


def precision_on(model: "ImageClassifier", precision: str) -> 'Literal["fp32", "bf16"]':
    """Return what "auto" means where *model* is; "fp32" and "bf16" mean themselves."""
    from vit21k.device import best_precision, is_emulated

    device = model.pos_embed.device
    if precision == "auto":
        return best_precision(device) if device.type == "cuda" else "fp32"
    if precision == "bf16" and is_emulated(device, "bf16"):
        console.warn(f"--precision bf16 is emulated on this {device.type}; fp32 is faster")
    return "bf16" if precision == "bf16" else "fp32"


ImagePaths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[IMAGE]...",
        help="Images, folders and tar archives of images, `archive.tar/member.jpg`; "
        "- reads one image from stdin.",
    ),
]
ImageManifest = Annotated[
    Path | None, typer.Option("--manifest", metavar="FILE", help="A manifest of images instead.")
]
ImageList = Annotated[
    Path | None,
    typer.Option(
        "--from-file", metavar="LIST", help="A file of paths instead, one a line; - is stdin."
    ),
]

_STDIN = Path("-")


def open_rows(
    paths: list[Path] | None,
    manifest: Path | None,
    from_file: Path | None,
    root: Path | None,
    skipped: "list[Skipped]",
) -> "ImageRows":
    """Return the images that a user asks for; *skipped* gets what is not looked at.

    Raises:
        UsageError: None of the three ways is taken, or several are, or there are no images.
        ManifestError: The manifest is missing, damaged or stale.
        ImageTreeError: The image root of the manifest is not there.
    """
    if sum((bool(paths), manifest is not None, from_file is not None)) != 1:
        raise UsageError(
            "which images?", hint="give IMAGE..., or --manifest FILE, or --from-file LIST"
        )
    if manifest:
        rows = _of_manifest(manifest, root)
    else:
        rows = _of_paths(paths or _listed(from_file), skipped)
    if not len(rows):
        where = manifest or from_file or ", ".join(f"`{path}`" for path in paths or [])
        raise UsageError(f"no images in {where}" + (f"; {_words_of(skipped)}" if skipped else ""))
    return rows


def warn_of_skipped(skipped: "list[Skipped]") -> bool:
    """Warn of what is not looked at; return whether images may be missed for it."""
    if skipped:
        console.warn(_words_of(skipped))
        if any(one.why == "an archive" for one in skipped):
            console.note("next: archives in a folder are read if they are named: `DIR DIR/*.tar`")
    return any(one.may_hold_images for one in skipped)


def _words_of(skipped: "list[Skipped]") -> str:
    from vit21k.sources.folders import in_words

    return one_line(in_words(skipped))


def _of_manifest(manifest: Path, root: Path | None) -> "ImageRows":
    from vit21k.data.dataset import ImageDataset
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGE_KINDS

    source = open_manifest(manifest, *IMAGE_KINDS)
    return ImageDataset.from_manifest(source, root, mapped=True, note=console.note)


def _of_paths(paths: list[Path], skipped: "list[Skipped]") -> "ImageRows":
    from vit21k.inference.files import Files, find_images

    if _STDIN in paths:
        if len(paths) > 1:
            raise UsageError("- reads one image from stdin, and takes no others beside it")
        return Files(paths, {0: sys.stdin.buffer.read()})
    return Files(find_images(paths, skipped))


def _listed(from_file: Path | None) -> list[Path]:
    if from_file == _STDIN:
        content = sys.stdin.buffer.read()
    else:
        content = from_file.read_bytes() if from_file else b""
    content = content.removeprefix(codecs.BOM_UTF8)
    return [Path(os.fsdecode(line)) for line in content.splitlines() if line.strip()]
