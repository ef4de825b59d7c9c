"""`get-dataset`, and `train --data`: pictures of elsewhere, ready to train on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.cli.classes_commands import warn_of_numbers
from vit21k.cli.options import AsJson
from vit21k.errors import DataError, UsageError

if TYPE_CHECKING:
    from vit21k.sources.manifests import Prepared

PANEL = "Prepare the data (in this order)"
NEXT = {
    "cifar10": "vit21k train --recipe cifar10_cpu --manifests {}",
    "cifar100": "vit21k train --recipe cifar10_cpu --manifests {} --run-dir runs/cifar100",
}


def register(app: typer.Typer) -> None:
    """Add `get-dataset` to *app*."""
    app.command("get-dataset", rich_help_panel=PANEL)(get_dataset_command)


def get_dataset_command(
    name: Annotated[Literal["cifar10", "cifar100"], typer.Argument(metavar="cifar10|cifar100")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where it goes; default: a folder of that name."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The archive, if it is here already: the published python .tar.gz, or a .zip of "
            "`train/<class>/` and `test/<class>/`; default: loaded by torchvision.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch CIFAR into an image tree and manifests: OUT/images, OUT/manifests.

    Pictures become PNG files, `train/frog/00000.png`, whose number is torchvision's; those of a zip
    stay as they are. The test pictures are val.parquet.

    [bold]Examples[/bold]

      vit21k get-dataset cifar10

      vit21k get-dataset cifar100 --out /data/cifar100 --archive cifar-100-python.tar.gz
    """
    from vit21k.sources.cifar import read_cifar
    from vit21k.sources.manifests import prepare
    from vit21k.sources.tree import IMAGES, MANIFESTS, write_tree
    from vit21k.sources.zipped import read_zip

    folder = out or Path(name)
    file = archive or _downloaded(name, folder)
    if not file.is_file():
        raise UsageError(f"no archive at `{file}`", hint="leave --archive out to load it")
    is_zip = file.suffix.lower() == ".zip"
    md5 = _md5_of(file)
    if not is_zip:
        _compare_md5(name, file, md5)
    pictures = read_zip(file) if is_zip else read_cifar(file, name)
    with console.progress("get-dataset", unit="pictures") as bar:
        counts = write_tree(pictures, folder, {"name": name, "md5": md5}, on_picture=bar.advance)
    prepared = prepare(folder / IMAGES, folder / MANIFESTS)
    if as_json:
        console.print_json({"counts": counts, "md5": md5, **asdict(prepared)})
    console.done(
        f"get-dataset: {sum(counts.values()):,} files in `{folder / IMAGES}`; {in_words(prepared)}"
    )
    console.note(f"next: `{NEXT[name].format(folder / MANIFESTS)}`")


def in_words(prepared: "Prepared") -> str:
    """Return what became of the files, in counts that add up."""
    problems = f", {prepared.num_problems:,} of no use" if prepared.num_problems else ""
    unused = f", {prepared.num_unused:,} for neither" if prepared.num_unused else ""
    return (
        f"{prepared.num_files:,} files read{problems}: {prepared.num_train:,} pictures to train "
        f"on, {prepared.num_val:,} to validate on ({prepared.split}){unused}, "
        f"{prepared.num_classes:,} classes"
    )


def prepare_data(path: Path, run_dir: Path, *, fresh: bool = False) -> Path:
    """Return the folder of manifests of a user's pictures, made below *run_dir* if need be.

    Processes that torchrun started come here one after the other, and find the same.  The manifests
    of a run that has begun stay as they are.

    Args:
        path: Class folders, with ``train`` and ``val`` around them or without; or a Hugging Face
            dataset on disk.
        run_dir: Nothing is written anywhere else.
        fresh: The run starts over, if it has begun.

    Raises:
        UsageError: There is nothing at *path*.
        DataError: It holds no pictures with labels, or others than the run began with.
    """
    from vit21k.lock import locked
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import IMAGES as IMAGES_KIND
    from vit21k.sources.hugging_face import HuggingFaceImages, is_hugging_face
    from vit21k.sources.manifests import prepare
    from vit21k.sources.tree import IMAGES, MANIFESTS, write_tree

    if not path.exists():
        raise UsageError(f"there is nothing at `{path}`")
    folder, labels = run_dir / "data", None
    with locked(folder, command="train --data", wait=True):
        root = path
        if is_hugging_face(path):
            dataset = HuggingFaceImages(path)
            counts: dict[str, Any] = write_tree(dataset.pictures(), folder / "tree", dataset.source)
            root, labels = folder / "tree" / IMAGES, dataset.names
            console.note(f"`{path}`: {sum(counts.values()):,} pictures as files in `{root}`")
            if dataset.skipped:
                console.warn(
                    f"{len(dataset.skipped):,} files of rows below `{path}` were not looked at, "
                    f"such as `{dataset.skipped[0]}`"
                )
            if dataset.num_unlabelled:
                console.warn(f"{dataset.num_unlabelled:,} pictures have no label; left out")
        has_begun = not fresh and (run_dir / "checkpoints" / "latest").is_file()
        with _prepared_apart(folder / MANIFESTS, path, run_dir, has_begun) as manifests:
            prepared = prepare(root, manifests, labels=labels)
    warn_of_numbers(open_manifest(folder / MANIFESTS, IMAGES_KIND).classes())
    console.done(f"data: {in_words(prepared)}; manifests in `{folder / MANIFESTS}`")
    return folder / MANIFESTS


@contextmanager
def _prepared_apart(manifests: Path, path: Path, run_dir: Path, has_begun: bool) -> Iterator[Path]:
    """Yield the folder to make *manifests* in: another one if a run that *has_begun* needs them.

    Raises:
        DataError: What was made there is another split.
    """
    from vit21k.manifest.schema import TRAIN

    if not has_begun or not (manifests / TRAIN.file_name).is_file():
        yield manifests
        return
    with TemporaryDirectory(dir=manifests.parent, prefix=".manifests.") as again:
        copytree(manifests, again, dirs_exist_ok=True)
        yield Path(again)
        _check_same_split(manifests, Path(again), path, run_dir)


def _check_same_split(before: Path, now: Path, path: Path, run_dir: Path) -> None:
    """Check that two folders of manifests hold the same split."""
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import TRAIN, VAL

    for kind in (TRAIN, VAL):
        if open_manifest(before, kind).fingerprint != open_manifest(now, kind).fingerprint:
            raise DataError(
                f"`{run_dir}` began with other images than those that are now in `{path}`: "
                f"{kind.file_name} differs",
                hint="name a new run with --run-dir; or resume this one with the images it began "
                f"with, if they are still there: `--manifests {before}` in place of --data",
            )


def _downloaded(name: str, folder: Path) -> Path:
    from vit21k.sources.download import download_cifar

    console.note(f"{name}: loaded by torchvision, unless it is in `{folder}` already")
    return download_cifar(name, folder)


def _md5_of(file: Path) -> str:
    import hashlib

    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _compare_md5(name: str, file: Path, md5: str) -> None:
    from vit21k.sources.download import published_md5

    published = published_md5(name)
    if published is not None and md5 != published:
        console.warn(f"`{file}` is not the published archive: its MD5 is {md5}, not {published}")
