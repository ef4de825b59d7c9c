"""`verify`, `diff`, `status`: compare manifests with files and with each other."""

from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    ImageRoot,
    Manifests,
    for_manifests,
)
from vit21k.errors import one_line
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.pack.verify import VerifyPackSummary
    from vit21k.prep.decode_check import DecodeSummary
    from vit21k.prep.diff import Difference, DiffSummary
    from vit21k.prep.verify import VerifySummary


def verify_pack_folder(folder: Path, combined: Path | None, *, decode: bool, as_json: bool) -> None:
    """Compare the pack in *folder* with its index, and report; see `verify_command`."""
    summary = _compare(folder, combined, print_lines=not as_json)
    if decode:
        _decode(folder, summary, print_lines=not as_json)
    if as_json:
        console.print_json(_result(summary))
    for name, problem in summary.manifest_problems.items():
        console.warn(f"`{folder / name}`: {problem}")
    console.done(
        f"verify: {summary.num_images:,} packed images: {summary.num_same:,} same, "
        f"{summary.num_different:,} different, {summary.num_missing:,} missing; "
        f"{summary.num_shards_same:,} of {summary.num_shards:,} shards are byte-identical; "
        + (
            f"{len(summary.manifest_problems):,} manifests differ"
            if summary.manifest_problems
            else "the manifests are intact"
        )
    )
    if decode:
        console.done(
            f"decode: {summary.num_images:,} images: {summary.num_decoded:,} decoded, "
            f"{summary.problems.total():,} not"
        )
    if not summary.is_same:
        console.note(
            "next: restore the damaged files from a copy; or remove them and rerun the command "
            "that "
            "packed them, which rebuilds what is missing"
        )
        raise typer.Exit(errors.EXIT_DIFFERENCES)
    if summary.problems:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _compare(folder: Path, combined: Path | None, *, print_lines: bool) -> "VerifyPackSummary":
    from vit21k.atomic import atomic_file
    from vit21k.pack.verify import verify_pack

    with ExitStack() as stack:
        file = stack.enter_context(atomic_file(combined)) if combined else None

        def on_file(sign: str, name: str) -> None:
            line = f"{sign} {one_line(name)}"
            if file is not None:
                file.write(f"{line}\n".encode())
            elif print_lines and sign != "=":
                console.print_lines(line)

        progress = stack.enter_context(console.progress("verify", unit="images"))
        return verify_pack(
            folder,
            on_file=on_file,
            on_shard=lambda num, num_bytes: progress.advance(num, num_bytes=num_bytes),
        )


def _decode(folder: Path, summary: "VerifyPackSummary", *, print_lines: bool) -> None:
    from vit21k.pack.verify import decode_pack

    def on_bad(path: str, kind: str, detail: str) -> None:
        if print_lines:
            console.print_lines(f"! {one_line(path)}\t{kind}\t{detail}")

    with console.progress("decode", unit="images") as progress:
        decode_pack(
            folder,
            summary,
            num_workers=num_threads(),
            on_bad=on_bad,
            on_verdict=lambda is_bad: progress.advance(num_problems=is_bad),
        )


def _result(summary: "VerifyPackSummary") -> dict[str, Any]:
    problems = {str(kind): count for kind, count in sorted(summary.problems.items())}
    return {**asdict(summary), "problems": problems, "is_same": summary.is_same}


_MARKS = {"added": "+", "removed": "-", "relabelled": "*", "moved": ">"}


def verify_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    combined: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a line for every file, unchanged ones too."),
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

    Lines are those of `rclone check --combined`: `= path` is the same, `* path` has other bytes,
    `+ path` is new, `- path` is missing, `! path` cannot be read. Without --combined, those that
    differ go to stdout. The exit code is 4 if there are any, 3 if an image cannot be decoded.

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
        verify_pack_folder(root or manifests, combined, decode=decode, as_json=as_json)
        return
    summary = _verify(manifests, root, combined, num_workers, print_lines=not as_json)
    decoded = _check_commands_decode(manifests, root) if decode else None
    if as_json:
        console.print_json(_verify_result(summary, decoded))
    _report_verify(summary)
    if decoded:
        _report_decode(decoded, manifests)
    if not summary.is_same:
        raise typer.Exit(errors.EXIT_DIFFERENCES)
    if decoded and decoded.problems:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _verify(
    manifests: Path,
    root: Path | None,
    combined: Path | None,
    num_workers: int | None,
    *,
    print_lines: bool,
) -> "VerifySummary":
    from vit21k.prep.verify import verify

    with ExitStack() as stack:
        file = stack.enter_context(_combined_file(combined, manifests)) if combined else None

        def on_file(sign: str, path: str) -> None:
            if file is not None:
                file.write(f"{_line(sign, path)}\n".encode())
            elif print_lines and sign != "=":
                console.print_lines(_line(sign, path))

        progress = stack.enter_context(console.progress("verify"))
        return verify(
            manifests,
            root=root,
            num_workers=num_workers,
            on_file=on_file,
            on_chunk=lambda chunk: progress.advance(
                len(chunk.files), num_bytes=chunk.num_bytes, fraction=chunk.fraction
            ),
        )


def _combined_file(path: Path, manifests: Path) -> AbstractContextManager[IO[bytes]]:
    from vit21k.atomic import atomic_file
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import DIGESTS
    from vit21k.manifest.writer import refuse_inside

    root = open_manifest(manifests, DIGESTS).header.root
    refuse_inside(path.absolute().parent, root, option="--combined")
    return atomic_file(path)


def _line(sign: str, path: str) -> str:
    return f"{sign} {one_line(path)}"


def _check_commands_decode(manifests: Path, root: Path | None) -> "DecodeSummary":
    from vit21k.prep.decode_check import find_undecodable

    with console.progress("decode", unit="images") as progress:
        return find_undecodable(
            manifests,
            root=root,
            num_workers=num_threads(),
            on_verdict=lambda verdict: progress.advance(num_problems=verdict.kind is not None),
        )


def _verify_result(summary: "VerifySummary", decoded: "DecodeSummary | None") -> dict[str, Any]:
    result: dict[str, Any] = {**asdict(summary), "is_same": summary.is_same}
    if decoded:
        result["decode"] = {
            "num_images": decoded.num_images,
            "num_decoded": decoded.num_decoded,
            "problems": {str(kind): count for kind, count in sorted(decoded.problems.items())},
            "num_known_problems": decoded.num_known_problems,
        }
    return result


def _report_verify(summary: "VerifySummary") -> None:
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
        console.note("next: restore the files, or run `vit21k hash` again")


def _report_decode(decoded: "DecodeSummary", manifests: Path) -> None:
    from vit21k.manifest import known_problems

    for kind, count in sorted(decoded.problems.items()):
        console.warn(f"{count:,} x {kind}: {kind.doc}")
    if known := known_problems.in_words(decoded.num_known_problems):
        console.note(known)
    if decoded.problems:
        console.note(f"listed in `{manifests / 'undecodable.parquet'}`")
    console.done(
        f"decode: {decoded.num_images:,} images: {decoded.num_decoded:,} decoded, "
        f"{decoded.problems.total():,} not"
    )


def diff_command(
    before: Annotated[Path, typer.Argument(metavar="A", help="A folder of manifests.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The one to compare it with.")],
    as_json: AsJson = False,
) -> None:
    """Compare two folders of manifests, image by image: two releases, or two sites.

    Images are matched by the digest of their bytes, labels by class folder. `+` was added, `-`
    was removed, `*` has other labels, `>` is in another split. The exit code is 4 if anything
    differs.

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
    return f"{_line(_MARKS[difference.change], difference.path)}\t{change}"


def _report_diff(summary: "DiffSummary") -> None:
    for what, wnids in (
        ("only in the first", summary.classes_removed),
        ("only in the second", summary.classes_added),
    ):
        if wnids:
            more = f" and {len(wnids) - 5:,} more" if len(wnids) > 5 else ""
            console.note(f"{len(wnids):,} classes {what}: {', '.join(wnids[:5])}{more}")
    if not summary.has_splits:
        console.note("splits were not compared: one of the two has none")
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
    next_command = for_manifests(status.next, manifests)
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
        console.note(
            f"image root: {status.root}{'' if status.has_root else ' (not there: use `--root`)'}"
        )
    states = [each.state for each in status.manifests]
    console.done(
        f"status: {len(states)} manifests: "
        + ", ".join(
            f"{states.count(state)} {state}" for state in ("fresh", "stale", "missing", "damaged")
        )
    )
    console.note(f"next: `{next_command}`")
