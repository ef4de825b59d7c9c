"""Options that several commands share, and what they select."""

import codecs
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.errors import MissingExtraError, UsageError, one_line
from vit21k.machine import num_threads
from vit21k.manifest import DEFAULT_FOLDER, FOLDER_VARIABLE

if TYPE_CHECKING:
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.checkpoint.preprocessing import Preprocessing
    from vit21k.data.dataset import ImageRows
    from vit21k.models.vit import ImageClassifier
    from vit21k.prep.ray import RayCluster
    from vit21k.sources.folders import Skipped


INSTALL_TRAIN = "pip install 'vit21k[train]'"
INSTALL_SERVE = "pip install 'vit21k[serve]'"


def require_torch(command: str) -> None:
    """Check that *command* can import torch and safetensors.

    Raises:
        MissingExtraError: One of them is not installed, or is broken.
    """
    try:
        _require(("torch", "safetensors"), command, INSTALL_TRAIN)
    except (ImportError, OSError) as error:  # a shared library is missing or has another version
        raise MissingExtraError(
            f"`vit21k {command}` needs torch, which cannot be imported: {error}",
            hint=f"see `vit21k doctor`, or reinstall it: {INSTALL_TRAIN}",
        ) from error


def require_serving(command: str, *, install: str = INSTALL_SERVE) -> None:
    """Check that *command* can import the web server; *install* is the command that installs it.

    Raises:
        MissingExtraError: A package of it is not installed.
    """
    _require(("starlette", "uvicorn"), command, install)


def _require(packages: Sequence[str], command: str, install: str) -> None:
    try:
        for name in packages:
            import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"`vit21k {command}` needs {error.name}, which is not installed",
            hint=f"install it with: {install}",
        ) from error


Manifests = Annotated[
    Path,
    typer.Option(
        "--manifests",
        metavar="DIR",
        envvar=FOLDER_VARIABLE,
        help="Folder of the manifests.",
    ),
]
DEFAULT_MANIFESTS = DEFAULT_FOLDER


_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20}
_UNITS |= {"GiB": 2**30, "TiB": 2**40}


def parse_bytes(option: str, text: str) -> int:
    """Return the number of bytes that *text*, such as 200GB, stands for.

    Raises:
        UsageError: It is not a size.
    """
    for unit, factor in _UNITS.items():
        number = text.removesuffix(unit).strip()
        if number != text.strip() and number.replace(".", "", 1).isdigit():
            return int(float(number) * factor)
    raise UsageError(f"{option}: `{text}` is not a size", hint="write it as 200GB, 1.5TB or 500GiB")


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout.")]

LabelSource = Annotated[
    str | None,
    typer.Option(
        "--label-from",
        metavar="SOURCE",
        help="The class of an image: its folder (or tar), parent (the folder above), top (the "
        "first folder below ROOT), key (n01440764_1.JPEG), cls, json:FIELD or column:NAME.",
        show_default="detected; refused if it is ambiguous",
    ),
]

ImageRoot = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIR|URL",
        envvar="VIT21K_ROOT",
        help="Current image root, if the tree has moved since it was hashed.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where to compute: on this machine, or on a Ray cluster."""

    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="Where to compute: on this machine, or a Ray cluster."),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="HOST:PORT",
            help="Address of the Ray cluster; default: RAY_ADDRESS, or this machine.",
        ),
    ] = None

    def cluster(self) -> "RayCluster | None":
        """Return the Ray cluster, if it is to be used; refuse an address without it."""
        if self.engine == "ray":
            from vit21k.prep.ray import RayCluster

            return RayCluster(self.address)
        if self.address:
            raise UsageError("`--address` needs `--engine ray`")
        return None


Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; default: the GPU if there is one.")
]
NumWorkers = Annotated[
    int | None, typer.Option(min=1, help="Decoding threads; default: one per core, at most 16.")
]
_MOST_WORKERS = 16


def device_or_best(device: str | None) -> str:
    """Return *device*, checked; if it is None, the GPU if there is one.

    Raises:
        UsageError: torch cannot use it.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"cannot compute on `{device}`: {reason}", hint="`vit21k doctor` lists the devices"
        ) from error
    return device


def workers_or_cores(num_workers: int | None) -> int:
    """Return *num_workers*; if it is None, the number of usable cores, at most 16."""
    return num_workers or min(_MOST_WORKERS, num_threads())


_BYTES = 1_000_000


def local_copy(path: str | os.PathLike[str]) -> str:
    """Return *path*; if it is an address, the path of its local copy, downloaded if missing.

    Raises:
        CheckpointError: There is no such file, or the download is damaged.
        OSError: The server cannot be reached.
    """
    from vit21k.convert.download import fetch, is_address

    text = os.fspath(path)
    if not is_address(text):
        return text
    with console.progress("download", unit="MB") as progress:

        def on_bytes(num_bytes: int, total: int | None) -> None:
            progress.total = total // _BYTES if total else None
            progress.advance(num_bytes // _BYTES - progress.num_done)

        copy = fetch(text, on_progress=on_bytes)
    console.note(f"`{text}` is stored in `{copy}`")
    return str(copy)


RunPath = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run (its newest checkpoint), a checkpoint, a model folder, weights of another "
        "library, or an address.",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Precision of the matrix products; auto: bf16 on a GPU that supports it."),
]
DeviceBatchSize = Annotated[
    int, typer.Option(min=1, help="Maximum number of images in one forward pass.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change the recipe; repeatable."),
]
WhichWeights = Annotated[
    Literal["raw", "ema"] | None,
    typer.Option(
        "--weights",
        help="The weights of the last step, or their moving average, if there are both.",
    ),
]
_Colours = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for what the files of a model do not state: preprocessing, which weights, sizes."""

    mean: Annotated[
        _Colours | None,
        typer.Option(
            metavar="R G B",
            help="Subtracted from the colours in 0..1; default: from the model's files. If they "
            "do not state it, a warning names the assumed value.",
        ),
    ] = None
    std: Annotated[
        _Colours | None,
        typer.Option(metavar="R G B", help="The colours are divided by it afterwards."),
    ] = None
    crop_pct: Annotated[
        float | None,
        typer.Option(
            min=0.04,
            max=1,
            help="Side of the crop as a fraction of the resized short side, as in timm.",
        ),
    ] = None
    crop_mode: Annotated[
        Literal["center", "squash"] | None,
        typer.Option(
            help="center: resize the short side, crop the middle; squash: resize both sides."
        ),
    ] = None
    interpolation: Annotated[
        Literal["bicubic", "bilinear"] | None, typer.Option(help="Interpolation of the resizing.")
    ] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="model.FIELD=VALUE",
            help="Model argument that the weights do not state: model.num_heads=6; repeatable.",
        ),
    ] = None
    weights: WhichWeights = None

    def preprocessing(self) -> "Preprocessing":
        """Return how images are prepared, as far as the options state it.

        Raises:
            UsageError: A number is not finite, or a deviation is not positive.
        """
        from vit21k.checkpoint.preprocessing import Preprocessing

        if not all(map(math.isfinite, (*(self.mean or ()), *(self.std or ())))):
            raise UsageError("--mean and --std are three finite numbers each")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"--std divides, and {min(self.std):g} is not positive")
        return Preprocessing(
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
        )

    def choice(self) -> "WeightsChoice":
        """Return which weights are meant, and the model arguments of ``--set``.

        Raises:
            UsageError: A setting is not ``model.FIELD=VALUE``.
        """
        from vit21k.checkpoint.foreign import WeightsChoice
        from vit21k.recipe.load import assign

        values: dict[str, Any] = {}
        for setting in self.settings or []:
            assign(values, setting)
        model = values.pop("model", {})
        if values or not isinstance(model, dict):
            raise UsageError(
                "--set takes model.FIELD=VALUE here: a model argument that the weights do not "
                "state",
                hint="for example: --set model.num_heads=N",
            )
        return WeightsChoice(which=self.weights, args=model)

    def load(self, run: str, device: str | None) -> "tuple[ImageClassifier, ModelCard]":
        """Load the model of *run*; warn about what is wrong or assumed."""
        from vit21k.checkpoint.load import load_model

        how, choice = self.preprocessing(), self.choice()
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

    def load_classifier(self, run: str, device: str | None) -> "tuple[ImageClassifier, ModelCard]":
        """Load the model of *run* and require that it has a head.

        Raises:
            UsageError: It has none.
        """
        from vit21k.checkpoint.model_folder import check_head

        model, card = self.load(run, device)
        check_head(card)
        return model, card


def precision_on(model: "ImageClassifier", precision: str) -> 'Literal["fp32", "bf16"]':
    """Return *precision*; "auto" becomes that of the device of *model*."""
    from vit21k.device import best_precision, is_emulated

    device = model.device
    if precision == "auto":
        return best_precision(device) if device.type == "cuda" else "fp32"
    if precision == "bf16" and is_emulated(device, "bf16"):
        console.warn(f"--precision bf16 is emulated on this {device.type}; fp32 is faster")
    return "bf16" if precision == "bf16" else "fp32"


_STDIN = Path("-")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """The three ways to name images."""

    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="Images, folders, tars and zips of images, `archive.tar/member.jpg`; "
            "- reads one image from stdin.",
        ),
    ] = None
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", metavar="FILE", help="A manifest of images instead."),
    ] = None
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file",
            metavar="LIST",
            help="A file of paths instead, one per line; - is stdin.",
        ),
    ] = None
    root: ImageRoot = None

    def open(self, skipped: "list[Skipped]") -> "ImageRows":
        """Return the images; append to *skipped* what folders and archives hold besides.

        Raises:
            UsageError: None of the three ways is used, or several are, or there are no images.
            ManifestError: The manifest is missing, damaged or stale.
            ImageTreeError: The image root of the manifest does not exist.
        """
        paths, manifest, from_file = self.paths, self.manifest, self.from_file
        if sum((bool(paths), manifest is not None, from_file is not None)) != 1:
            raise UsageError(
                "which images?",
                hint="name images or folders, or give --manifest FILE, or --from-file LIST",
            )
        if manifest:
            rows = _of_manifest(manifest, self.root)
        else:
            rows = _of_paths(paths or _listed(from_file), skipped)
        if not len(rows):
            where = manifest or from_file or ", ".join(f"`{path}`" for path in paths or [])
            raise UsageError(
                f"no images in {where}" + (f"; {_words_of(skipped)}" if skipped else "")
            )
        return rows


def warn_of_skipped(skipped: "list[Skipped]") -> bool:
    """Warn about skipped entries; return whether images may be among them."""
    if skipped:
        console.warn(_words_of(skipped))
        if archive := next((one.path for one in skipped if one.why == "an archive"), None):
            console.note(f"next: to read an archive in a folder, name it: `{one_line(archive)}`")
    return any(one.may_hold_images for one in skipped)


def _words_of(skipped: "list[Skipped]") -> str:
    from vit21k.sources.folders import describe_skipped

    return one_line(describe_skipped(skipped))


def _of_manifest(manifest: Path, root: str | None) -> "ImageRows":
    from vit21k.data.dataset import ImageDataset
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGE_KINDS

    source = open_manifest(manifest, *IMAGE_KINDS)
    return ImageDataset.from_manifest(source, root, mapped=True, note=console.note)


def _of_paths(paths: list[Path], skipped: "list[Skipped]") -> "ImageRows":
    from vit21k.inference.files import Files, find_images

    if _STDIN in paths:
        if len(paths) > 1:
            raise UsageError("- reads one image from stdin and cannot be combined with other paths")
        return Files(paths, {0: sys.stdin.buffer.read()})
    return Files(find_images(paths, skipped))


def _listed(from_file: Path | None) -> list[Path]:
    if from_file == _STDIN:
        content = sys.stdin.buffer.read()
    else:
        content = from_file.read_bytes() if from_file else b""
    content = content.removeprefix(codecs.BOM_UTF8)
    return [Path(os.fsdecode(line)) for line in content.splitlines() if line.strip()]
