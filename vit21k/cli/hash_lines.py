"""What `hash` says on the terminal."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vit21k.cli import console
from vit21k.cli.options import for_manifests

if TYPE_CHECKING:
    from vit21k.hashing.summary import HashSummary

_WNID = re.compile(r"n\d{8}")


def hash_result(summary: "HashSummary") -> dict[str, object]:
    """Return the counts as JSON values."""
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


def report_hash(
    summary: "HashSummary", manifests: Path, *, next_command: str | None = None
) -> None:
    """Say what was found, what is wrong, and what comes next (stderr)."""
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
    console.note(f"next: `{next_command or for_manifests('vit21k relabel', manifests)}`")


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
    if len(wnids) == 1 and not any(map(_WNID.fullmatch, wnids)):
        console.warn(
            f"all images are of one class, `{next(iter(wnids))}`: is there a folder for each class?"
        )
    odd = sorted(wnid for wnid in wnids if not _WNID.fullmatch(wnid))
    if odd and len(odd) * 10 <= len(wnids):
        console.warn(
            f"{console.some(odd)} will be classes, though not named like the other "
            f"{len(wnids) - len(odd):,} (n01440764 ...)"
        )
