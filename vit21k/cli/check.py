"""`verify`, `diff`, `status`: compare manifests with files and with each other."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.next_steps import next_stage, print_next, train_command_for
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests
from vit21k.errors import one_line
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.manifest.problems import ProblemKind
    from vit21k.pack.verify import VerifyPackSummary
    from vit21k.prep.decode_check import DecodeSummary
    from vit21k.prep.diff import Difference, DiffSummary
    from vit21k.prep.verify import VerifySummary
    from vit21k.sources.read import Root

_MARKS = {"added": "+", "removed": "-", "relabelled": "*", "moved": ">"}
_NUM_NAMED = 5


def verify_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    combined: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a line for each file, unchanged ones too."),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode",
            help="Also decode every image, with at most 5 s and 1 GiB each; failures are listed in "
            "undecodable.parquet.",
        ),
    ] = False,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Number of files read in parallel.", show_default="8")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hash the image tree again, and compare it with digests.parquet.

    Lines have the format of `rclone check --combined`: `= path` is unchanged, `* path` has other
    bytes, `+ path` is new, `- path` is missing, `! path` cannot be read. Without --combined, the
    differences go to stdout. The exit code is 4 if there are any, 3 if an image cannot be decoded.

    The other manifests of the folder are read in full and checked for damage.

    If --manifests is a pack, its shards and manifests are compared with packed.parquet.

    [bold]Examples[/bold]

      vit21k verify

      vit21k verify --root /mnt/copy/ImageNet21K --combined differences.txt

      vit21k verify --decode

      vit21k verify --manifests in21k_pack
    """
    from vit21k.pack.verify import is_pack

    if is_pack(manifests):
        _verify_pack(manifests, root, combined, decode=decode, as_json=as_json)
    else:
        _verify_tree(manifests, root, combined, num_workers, decode=decode, as_json=as_json)


def _verify_tree(
    manifests: Path,
    root: str | None,
    combined: Path | None,
    num_workers: int | None,
    *,
    decode: bool,
    as_json: bool,
) -> None:
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.problems import describe_known
    from vit21k.manifest.schema import DIGESTS
    from vit21k.manifest.writer import refuse_inside
    from vit21k.prep.verify import verify

    if combined:
        tree = open_manifest(manifests, DIGESTS).header.image_folder
        refuse_inside(combined.absolute().parent, tree, option="--combined")
    with (
        _difference_lines(combined, print_lines=not as_json) as on_file,
        console.progress("verify") as progress,
    ):
        summary = verify(
            manifests,
            root=root,
            num_workers=num_workers,
            on_file=on_file,
            on_chunk=lambda chunk: progress.advance(
                len(chunk.files), num_bytes=chunk.num_bytes, fraction=chunk.fraction
            ),
        )
    result: dict[str, Any] = {**asdict(summary), "is_same": summary.is_same}
    decoded = _decode_tree(manifests, root) if decode else None
    if decoded:
        result["decode"] = {
            "num_images": decoded.num_images,
            "num_decoded": decoded.num_decoded,
            "problems": console.counts(decoded.problems),
            "num_known_problems": decoded.num_known_problems,
        }
    if as_json:
        console.print_json(result)
    _report_verify(summary, manifests)
    if decoded:
        for kind, count in sorted(decoded.problems.items()):
            console.warn(f"{count:,} x {kind}: {kind.doc}")
        if known := describe_known(decoded.num_known_problems):
            console.note(known)
        if decoded.problems:
            console.note(f"listed in `{manifests / 'undecodable.parquet'}`")
        _report_decoded(decoded.num_images, decoded.num_decoded, decoded.problems)
    _exit(summary.is_same, decoded.problems if decoded else Counter())
    print_next(next_stage(manifests, root))


def _decode_tree(manifests: Path, root: "Root | None") -> "DecodeSummary":
    from vit21k.prep.decode_check import find_undecodable

    with console.progress("decode", unit="images") as progress:
        return find_undecodable(
            manifests,
            root=root,
            num_workers=num_threads(),
            on_verdict=lambda verdict: progress.advance(num_problems=verdict.kind is not None),
        )


def _verify_pack(
    folder: Path, root: str | None, combined: Path | None, *, decode: bool, as_json: bool
) -> None:
    """Compare the pack in *folder* with its index, and report.

    A *root* is the folder of another copy, or the URL of its shards.
    """
    from vit21k.pack.verify import decode_pack, verify_pack
    from vit21k.sources.remote import is_url

    url = root if is_url(root) else None
    folder = folder if url or root is None else Path(root)
    with (
        _difference_lines(combined, print_lines=not as_json) as on_file,
        console.progress("verify", unit="images") as progress,
    ):
        summary = verify_pack(
            folder,
            root=url,
            on_file=on_file,
            on_shard=lambda num, num_bytes: progress.advance(num, num_bytes=num_bytes),
        )

    def on_bad(path: str, kind: str, detail: str) -> None:
        if not as_json:
            console.print_lines(f"! {one_line(path)}\t{kind}\t{detail}")

    if decode:
        with console.progress("decode", unit="images") as progress:
            decode_pack(
                folder,
                summary,
                root=url,
                num_workers=num_threads(),
                on_bad=on_bad,
                on_verdict=lambda is_bad: progress.advance(num_problems=is_bad),
            )
    if as_json:
        counts = {"problems": console.counts(summary.problems), "is_same": summary.is_same}
        console.print_json({**asdict(summary), **counts})
    _report_pack(summary, folder)
    if decode:
        _report_decoded(summary.num_images, summary.num_decoded, summary.problems)
    _exit(summary.is_same, summary.problems)
    print_next(train_command_for(folder))


@contextmanager
def _difference_lines(
    combined: Path | None, *, print_lines: bool
) -> Iterator[Callable[[str, str], None]]:
    """Yield a function of sign and path that writes a line to *combined*, or prints differences."""
    from vit21k.atomic import atomic_file

    with atomic_file(combined) if combined else nullcontext() as file:

        def on_file(sign: str, path: str) -> None:
            line = f"{sign} {one_line(path)}"
            if file is not None:
                file.write(f"{line}\n".encode())
            elif print_lines and sign != "=":
                console.print_lines(line)

        yield on_file


def _exit(is_same: bool, problems: "Counter[ProblemKind]") -> None:
    if not is_same:
        raise typer.Exit(errors.EXIT_DIFFERENCES)
    if problems:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _report_verify(summary: "VerifySummary", manifests: Path) -> None:
    for name, problem in summary.manifest_problems.items():
        console.warn(f"`{name}`: {problem}")
    if summary.num_by_size:
        console.warn(
            f"{summary.num_by_size:,} files have no digest (`hash --mode quick`); only their sizes "
            "were compared"
        )
    console.done(
        f"verify: {summary.num_files:,} listed files: {summary.num_same:,} same, "
        f"{summary.num_different:,} different, {summary.num_missing:,} missing, "
        f"{summary.num_unreadable:,} unreadable; {summary.num_new:,} not listed"
    )
    if not summary.is_same:
        console.note("next: restore the files, or run the `vit21k hash` of these manifests again")


def _report_pack(summary: "VerifyPackSummary", folder: Path) -> None:
    for name, problem in summary.manifest_problems.items():
        console.warn(f"`{folder / name}`: {problem}")
    manifests = f"{len(summary.manifest_problems):,} manifests differ"
    console.done(
        f"verify: {summary.num_images:,} packed images: {summary.num_same:,} same, "
        f"{summary.num_different:,} different, {summary.num_missing:,} missing; "
        f"{summary.num_shards_same:,} of {summary.num_shards:,} shards are byte-identical; "
        + (manifests if summary.manifest_problems else "the manifests are intact")
    )
    if not summary.is_same:
        console.note(
            "next: restore the damaged files from a copy; or remove them and rerun the `pack` "
            "command, which rebuilds what is missing"
        )


def _report_decoded(num_images: int, num_decoded: int, problems: "Counter[ProblemKind]") -> None:
    console.done(
        f"decode: {num_images:,} images: {num_decoded:,} decoded, {problems.total():,} not"
    )


def diff_command(
    before: Annotated[Path, typer.Argument(metavar="A", help="A folder of manifests.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The folder to compare it with.")],
    as_json: AsJson = False,
) -> None:
    """Compare two folders of manifests image by image: two releases, or two sites.

    Images are matched by digest, labels by class folder. `+`: added, `-`: removed, `*`: other
    labels, `>`: another split. The exit code is 4 if anything differs.

    [bold]Examples[/bold]

      vit21k diff fall11_manifests winter21_manifests

      vit21k diff old new --json | jq .num_changes
    """
    from vit21k.prep.diff import diff_manifests

    summary, differences = diff_manifests(before, after)
    if as_json:
        found = [difference._asdict() for difference in differences]
        console.print_json({**asdict(summary), "is_same": summary.is_same, "differences": found})
    else:
        for difference in differences:
            console.print_lines(_difference_line(difference))
    _report_diff(summary)
    if not summary.is_same:
        raise typer.Exit(errors.EXIT_DIFFERENCES)


def _difference_line(difference: "Difference") -> str:
    before, after = ",".join(difference.before), ",".join(difference.after)
    change = {
        "added": after,
        "removed": before,
        "relabelled": f"{before} -> {after}",
        "moved": f"{before or 'no split'} -> {after or 'no split'}",
    }[difference.change]
    return f"{_MARKS[difference.change]} {one_line(difference.path)}\t{change}"


def _report_diff(summary: "DiffSummary") -> None:
    for what, wnids in (
        ("only in the first", summary.classes_removed),
        ("only in the second", summary.classes_added),
    ):
        if wnids:
            console.note(f"{len(wnids):,} classes {what}: {console.some(wnids, _NUM_NAMED)}")
    if not summary.has_splits:
        console.note("splits were not compared: one folder has none")
    counts = summary.num_changes
    console.done(
        f"diff: {summary.num_before:,} images, {summary.num_after:,} images: "
        f"{summary.num_same:,} same, {counts['added']:,} added, {counts['removed']:,} removed, "
        f"{counts['relabelled']:,} with other labels, {counts['moved']:,} in another split"
    )


def status_command(manifests: Manifests = DEFAULT_MANIFESTS, as_json: AsJson = False) -> None:
    """Show which manifests exist, which are stale, and the next command.

    [bold]Examples[/bold]

      vit21k status

      vit21k status --manifests in21k_manifests --json
    """
    from vit21k.prep.status import status_of

    status = status_of(manifests)
    next_command = next_stage(manifests)
    if as_json:
        console.print_json({**asdict(status), "next": next_command})
    else:
        console.print_table(
            ["manifest", "state", "rows", "one row is a", "made by"],
            [
                [
                    each.kind,
                    f"{each.state}: {each.detail}" if each.detail else each.state,
                    "-" if each.num_rows is None else f"{each.num_rows:,}",
                    each.row,
                    each.next,
                ]
                for each in status.manifests
            ],
        )
    if status.root:
        missing = "" if status.has_root else " (does not exist: use `--root`)"
        console.note(f"image root: {status.root}{missing}")
    states = [each.state for each in status.manifests]
    console.done(
        f"status: {len(states)} manifests: "
        + ", ".join(
            f"{states.count(state)} {state}" for state in ("fresh", "stale", "missing", "damaged")
        )
    )
    print_next(next_command)
