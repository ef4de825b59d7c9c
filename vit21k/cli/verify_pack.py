"""`verify` of a pack."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.machine import num_threads
from vit21k.one_line import one_line

if TYPE_CHECKING:
    from vit21k.pack.verify import VerifyPackSummary


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
        f"verify: {summary.num_pictures:,} packed pictures: {summary.num_same:,} same, "
        f"{summary.num_different:,} different, {summary.num_missing:,} missing; "
        f"{summary.num_shards_same:,} of {summary.num_shards:,} shards are the same to the last "
        "byte; "
        + (
            f"{len(summary.manifest_problems):,} manifests differ"
            if summary.manifest_problems
            else "the manifests are intact"
        )
    )
    if decode:
        console.done(
            f"decode: {summary.num_pictures:,} pictures: {summary.num_decoded:,} decoded, "
            f"{summary.problems.total():,} not"
        )
    if not summary.is_same:
        console.note(
            "next: copy the damaged files again; or remove them, and give the command that packed "
            "them again: it makes what is missing"
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

        progress = stack.enter_context(console.progress("verify", unit="pictures"))
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

    with console.progress("decode", unit="pictures") as progress:
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
