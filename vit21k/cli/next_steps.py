"""The command that follows another one, with all options it needs; and the recipe to begin with."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vit21k.cli import console
from vit21k.machine import has_nvidia_gpu
from vit21k.manifest import with_folder

if TYPE_CHECKING:
    from vit21k.manifest.io import Manifest
    from vit21k.sources.read import Root

_MANY_IMAGES = 500_000
_SOME_IMAGES = 10_000


class Suggestion(NamedTuple):
    """Training that suits data and device.

    Attributes:
        recipe: A shipped recipe.
        why: The reason.
        init: Weights that it starts from; None: from scratch.
    """

    recipe: str
    why: str
    init: str | None = None

    @property
    def options(self) -> str:
        """Options of `vit21k train`."""
        return f"--recipe {self.recipe}" + (f" --init {self.init}" if self.init else "")


def suggested_training(num_images: int | None) -> Suggestion:
    """Return training that finishes, for *num_images* (None: unknown) on this machine."""
    if not has_nvidia_gpu():
        return Suggestion("tiny", "there is no GPU: a very small model that trains in minutes")
    if num_images is not None and num_images >= _MANY_IMAGES:
        return Suggestion("pretrain_l16_in21k", f"{num_images:,} images and a GPU")
    size = "10k" if num_images is not None and num_images >= _SOME_IMAGES else "500"
    why = "fine-tuning needs fewer images than training from scratch"
    return Suggestion(f"finetune_google_folder_{size}", why, "ViT-B_16")


def num_training_images(manifests: Path) -> int | None:
    """Return the number of rows of `train.parquet`; None if it cannot be opened."""
    from vit21k.errors import ManifestError
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import TRAIN

    try:
        return open_manifest(manifests, TRAIN).num_rows
    except ManifestError:
        return None


def with_options(
    command: str,
    *,
    manifests: Path,
    root: "Root | None" = None,
    decisions: Path | None = None,
) -> str:
    """Return *command* with the options it needs: those that differ from their defaults."""
    command = with_folder(command, manifests)
    if root and str(root) != os.environ.get("VIT21K_ROOT"):
        command += f" --root {shlex.quote(str(root))}"
    if decisions:
        command += f" --decisions {shlex.quote(str(decisions))}"
    return command


def train_command_for(manifests: Path, root: "Root | None" = None) -> str:
    """Return the command that trains on *manifests*."""
    options = suggested_training(num_training_images(manifests)).options
    return with_options(f"vit21k train {options}", manifests=manifests, root=root)


def predict_command_for(run: str, source: "Manifest", root: "Root | None" = None) -> str:
    """Return the command that predicts the first image of *source*; all of them in a container."""
    row = next(source.batches(["path"])).slice(0, 1).to_pylist()[0]
    image = Path(str(root or source.header.root)) / row["path"]
    if image.is_file():
        return shlex.join(["vit21k", "predict", run, str(image)])
    words = ["vit21k", "predict", run, "--manifest", str(source.path)]
    return shlex.join([*words, *(["--root", str(root)] if root else [])])


def next_stage(manifests: Path, root: "Root | None" = None) -> str:
    """Return the next command for a folder of manifests, as `vit21k status` prints it."""
    from vit21k.prep.status import AFTER_ALL, status_of

    command = status_of(manifests).next
    if command == AFTER_ALL:
        return train_command_for(manifests, root)
    return with_options(command, manifests=manifests)


def print_next(command: str, words: str = "") -> None:
    """Print the next command, and *words* about it (stderr)."""
    console.note(f"next: `{command}`{words}")


def print_next_split(manifests: Path, root: "Root | None" = None) -> None:
    """Print the command after `images.parquet`: it makes the split, or trains if there is one."""
    from vit21k.manifest.schema import TRAIN
    from vit21k.prep.split import command_to_split

    if (manifests / TRAIN.file_name).is_file():
        print_next_training(manifests, root)
    else:
        print_next(with_options(command_to_split(manifests), manifests=manifests))


def print_next_training(manifests: Path, root: "Root | None" = None) -> None:
    """Print the command that trains on *manifests*, and why it is that one."""
    why = suggested_training(num_training_images(manifests)).why
    print_next(train_command_for(manifests, root), f" ({why})")
