"""`hash`: the shell around `vit21k.hashing.hash_tree`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.data_commands import PANEL
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    Manifests,
    OnAddress,
    OnEngine,
    is_on_ray,
)

if TYPE_CHECKING:
    from vit21k.hashing.digest import DigestedChunk
    from vit21k.hashing.engine import Engine
    from vit21k.hashing.shards import Shard
    from vit21k.hashing.summary import HashSummary

_WNID = re.compile(r"n\d{8}")


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

    The class of an image is the name of the folder it lies in, at any depth.

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
    anywhere = {"algorithm": algorithm, "num_workers": num_workers}
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
        console.print_json(_hash_result(summary))
    _finish(summary, manifests, share)


def _finish(summary: "HashSummary", manifests: Path, share: "Shard | None") -> None:
    """Report *summary*, and end with the exit code that it has."""
    if share:
        _report_hash(summary, share.folder(manifests), next_command=_after_shards(manifests))
    else:
        _report_hash(summary, manifests)
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
                hint="of the options only `--algorithm` and `--num-workers` go with a URL",
            )
        return hash_remote(root, manifests, **anywhere, on_chunk=advance)


def _engine(name: str, address: str | None) -> "Engine | None":
    if not is_on_ray(name, address):
        return None
    from vit21k.hashing.ray_engine import ray_engine

    return ray_engine(address)


def _hash_result(summary: "HashSummary") -> dict[str, object]:
    return {
        "num_entries": summary.num_entries,
        "num_files": summary.num_files,
        "num_bytes": summary.num_bytes,
        "num_bytes_read": summary.num_bytes_read,
        "num_known": summary.num_known,
        "num_without_digest": summary.num_without_digest,
        "num_unknown": summary.num_unknown,
        "silently_changed": summary.silently_changed,
        "num_classes": len(summary.wnids),
        "num_bad": summary.num_bad,
        "num_left_out": summary.num_left_out,
        "problems": {str(kind): count for kind, count in sorted(summary.problems.items())},
    }


def _after_shards(manifests: Path) -> str:
    return f"vit21k relabel {manifests / 'shards'}/*"


def _report_hash(
    summary: "HashSummary", manifests: Path, *, next_command: str = "vit21k relabel"
) -> None:
    for kind, count in sorted(summary.problems.items()):
        say = console.note if kind.is_left_out else console.warn
        say(f"{count:,} x {kind}: {kind.doc}")
    _warn_of_odd_folders(summary.wnids)
    _report_what_was_known(summary)
    if summary.problems:
        console.note(f"listed in `{manifests / 'problems.parquet'}`")
    console.done(
        f"hash: {summary.num_entries:,} entries: "
        f"{summary.num_files:,} files in {len(summary.wnids):,} classes "
        f"({_size(summary.num_bytes)}), "
        f"{summary.num_bad:,} bad, {summary.num_left_out:,} left out"
    )
    console.note(f"next: `{next_command}`")


def _report_what_was_known(summary: "HashSummary") -> None:
    if summary.num_known:
        console.note(
            f"{summary.num_known:,} files are as an earlier run left them; "
            f"{_size(summary.num_bytes_read)} read"
        )
    if summary.num_known and summary.is_remote:
        console.warn(
            "on a network file system, files are known by size and modification time alone; "
            "`--recheck 0.01` reads some all the same, `--fresh` all"
        )
    if summary.num_unknown:
        console.warn(
            f"{summary.num_unknown:,} files begin like no image format that is known; `format` in "
            "digests.parquet tells which, `vit21k verify --decode` whether they can be decoded"
        )
    if summary.num_without_digest:
        console.note(
            f"{summary.num_without_digest:,} files are unlike all others and have no digest; "
            f"{_size(summary.num_bytes_read)} read"
        )
    if summary.silently_changed:
        console.warn(
            f"{len(summary.silently_changed):,} files have other content than before, though their "
            f"size and times have not changed: {console.some(summary.silently_changed)}; "
            "is the disk failing? read all with `--fresh`"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _warn_of_odd_folders(wnids: set[str]) -> None:
    """Point at folders that are not named like the others: each would be a class of its own."""
    odd = sorted(wnid for wnid in wnids if not _WNID.fullmatch(wnid))
    if odd and len(odd) * 10 <= len(wnids):
        console.warn(
            f"{console.some(odd)} will be classes, though not named like the other "
            f"{len(wnids) - len(odd):,} (n01440764 ...)"
        )
