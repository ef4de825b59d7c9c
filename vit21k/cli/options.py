"""Options that several commands share."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from vit21k.errors import UsageError

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
