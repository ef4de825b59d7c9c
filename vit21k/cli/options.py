"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

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

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout.")]

ImageRoot = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="DIR",
        envvar="VIT21K_ROOT",
        help="Where the images are now, if the tree has moved since it was hashed.",
    ),
]
