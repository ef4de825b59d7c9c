"""`hash`: the shell around `vit21k.hashing.hash_tree`."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.data_commands import PANEL
from vit21k.cli.hash_lines import hash_result, report_hash
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    LabelSource,
    Manifests,
    OnAddress,
    OnEngine,
    for_manifests,
    is_on_ray,
)

if TYPE_CHECKING:
    from vit21k.hashing.digest import DigestedChunk
    from vit21k.hashing.engine import Engine
    from vit21k.hashing.shards import Shard
    from vit21k.hashing.summary import HashSummary


def register(app: typer.Typer) -> None:
    """Add `hash` to *app*."""
    app.command("hash", rich_help_panel=PANEL)(hash_command)


def hash_command(
    root: Annotated[
        str,
        typer.Argument(
            metavar="ROOT",
            help="The image tree, a tar archive, or a URL (s3://bucket/folder); never written to.",
        ),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    algorithm: Annotated[
        Literal["xxh3_128", "md5", "blake2b_128"],
        typer.Option(help="What digests are made with: fast, known everywhere, or unforgeable."),
    ] = "xxh3_128",
    num_workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Files read at a time.",
            show_default="8; 2 without a C compiler; 32 on a network file system or at a URL",
        ),
    ] = None,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Read what symbolic links lead to.")
    ] = False,
    mode: Annotated[
        Literal["full", "quick"],
        typer.Option(
            help="quick reads both ends of most files only, and to the end just those that may "
            "have a copy: less than a quarter of the bytes, and the same copies. But unique files "
            "get no digest, so that `verify` cannot check them nor `--by content` merge them.",
        ),
    ] = "full",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Read everything, whatever earlier runs have read.")
    ] = False,
    recheck: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="P", help="Share of the unchanged files to read all the same."
        ),
    ] = 0.0,
    label_from: LabelSource = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Read only the I-th of N shares of the folders; other machines read the others.",
        ),
    ] = None,
    engine: OnEngine = "local",
    address: OnAddress = None,
    as_json: AsJson = False,
) -> None:
    """Read every image once: ROOT -> digests.parquet, problems.parquet.

    The class of an image is the name of the folder it lies in, at any depth.  Where that cannot be
    right (train/ and val/, shards, dog/2021), the tree is refused; `--label-from` settles it.

    Tar archives (.tar, .tar.gz, .tgz) are read where they lie, class tars in a tar as well, as if
    each had been unpacked to a folder of its name.

    Run again after it was killed, it goes on where it was; files that have not changed since are
    not read again (size, times and inode tell).

    Files that cannot be used are listed and do not stop the run; the exit code is then 3.

    [bold]Examples[/bold]

      vit21k hash /data/ImageNet21K

      vit21k hash /data/fall11_whole.tar

      vit21k hash /data/ImageNet21K --manifests in21k_manifests --num-workers 64

      vit21k hash /data/ImageNet21K --algorithm md5 --json > hash.json

      vit21k hash /data/ImageNet21K --mode quick

      vit21k hash /data/ImageNet21K --recheck 0.01

      vit21k hash /data/ImageNet21K --shard 3/8

      vit21k hash /shared/ImageNet21K --engine ray --address 10.0.0.1:6379

      vit21k hash s3://bucket/ImageNet21K --num-workers 64
    """
    # Arrow's own pool keeps what it has taken: 40 MB at 400,000 files, for nothing gained here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # before Arrow is imported
    from vit21k.hashing.shards import Shard

    share = Shard.parse(shard) if shard else None
    anywhere = {"algorithm": algorithm, "num_workers": num_workers, "label_from": label_from}
    on_disk = {
        "follow_symlinks": follow_symlinks,
        "mode": mode,
        "is_fresh": fresh,
        "recheck": recheck,
        "shard": share,
        "engine": _engine(engine, address),
    }
    summary = _hash(root, manifests, anywhere, on_disk)
    if as_json:
        console.print_json(hash_result(summary))
    _finish(summary, manifests, share)


def _finish(summary: "HashSummary", manifests: Path, share: "Shard | None") -> None:
    """Report *summary*, and end with the exit code that it has."""
    if share:
        report_hash(summary, share.folder(manifests), next_command=_after_shards(manifests))
    else:
        report_hash(summary, manifests)
    if summary.silently_changed:
        raise typer.Exit(errors.EXIT_DIFFERENCES)
    if summary.num_bad:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _hash(
    root: str, manifests: Path, anywhere: dict[str, Any], on_disk: dict[str, Any]
) -> "HashSummary":
    """Hash with those options that go with a tree anywhere, and those for one on a disk."""
    from vit21k.hashing.hash_tree import hash_tree
    from vit21k.hashing.remote import hash_remote, is_url

    with console.progress("hash, both ends") as looking, console.progress("hash") as progress:

        def look(chunk: "DigestedChunk") -> None:
            looking.advance(len(chunk.files), fraction=chunk.fraction)

        def advance(chunk: "DigestedChunk") -> None:
            progress.advance(
                len(chunk.files),
                num_bytes=chunk.num_bytes,
                num_problems=chunk.num_bad,
                fraction=chunk.fraction,
            )

        if not is_url(root):
            return hash_tree(
                Path(root), manifests, **anywhere, **on_disk, on_look=look, on_chunk=advance
            )
        if any(value and value != "full" for value in on_disk.values()):
            raise errors.UsageError(
                "of a URL everything is read, by this machine, each time",
                hint="of the options only `--algorithm`, `--num-workers` and `--label-from` go "
                "with a URL",
            )
        return hash_remote(root, manifests, **anywhere, on_chunk=advance)


def _engine(name: str, address: str | None) -> "Engine | None":
    if not is_on_ray(name, address):
        return None
    from vit21k.hashing.ray_engine import ray_engine

    return ray_engine(address)


def _after_shards(manifests: Path) -> str:
    return for_manifests(f"vit21k relabel {shlex.quote(str(manifests / 'shards'))}/*", manifests)
