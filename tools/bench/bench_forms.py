"""Time `vit21k hash` on published forms of a dataset against `cat` on the same files.

    python tools/bench/bench_forms.py IMAGES --cold --out docs/internals/benchmarks.md

The forms are those of `tools/check/check_sources.py`, of the images in IMAGES (<class>/<file>),
each of them repeated with a comment of its own.  Every round runs `cat` and `hash` on each form, in
turn, and `hash` on a single image, which is the start of the interpreter.  With `--cold` the files
are dropped from memory before each run, so that they come from the disk.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path += [str(Path(__file__).parents[1] / name) for name in ("docs", "check")]

from check_sources import FORMS, File, read_files
from generated_block import write_or_check

_NAMES = ("folders", "class tars", "wds timm", "zip", "parquet", "parquet with compressed columns")


class Times(NamedTuple):
    """Of one run of a command, in seconds.

    Attributes:
        wall: As a clock has it.
        cpu: Of all threads.
    """

    wall: float
    cpu: float


def main() -> None:
    """Make the forms, run the rounds, print or store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--copies", type=int, default=8, help="of each image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--form", action="append", help=f"may be repeated; default: {_NAMES}")
    parser.add_argument("--work", type=Path, help="folder for the forms; default: a temporary one")
    parser.add_argument("--cold", action="store_true", help="read the files from the disk")
    parser.add_argument("--out", type=Path, help="file whose `bench_forms` block is replaced")
    args = parser.parse_args()
    names = args.form or _NAMES
    files = repeated(read_files(args.images, num_copies=0), args.copies)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        FORMS["folders"].write(files[:1], work / "one")
        for name in names:
            (work / name).mkdir()
            FORMS[name].write(files, work / name)
        os.sync()
        times = measure(work, names, args.rounds, is_cold=args.cold)
    table = table_of(times, files, names, args)
    print(table)
    if args.out:
        write_or_check(args.out, {"bench_forms": table}, check=False)


def repeated(files: Sequence[File], num_copies: int) -> list[File]:
    """Return each of *files*, JPEGs, *num_copies* times, with a comment of its own."""
    found = []
    for number, file in enumerate(files):
        for copy in range(num_copies):
            comment = b"\xff\xfe\0\x12%08d%08d" % (number, copy)
            name = file.name.replace(".", f"_{copy}.", 1)
            content = file.content[:2] + comment + file.content[2:]
            found.append(File(file.wnid, name, content))
    return found


def measure(
    work: Path, names: Sequence[str], num_rounds: int, *, is_cold: bool
) -> dict[tuple[str, str], list[Times]]:
    """Return the times of each command by its form, after a round to warm up."""
    times: dict[tuple[str, str], list[Times]] = {}
    hash_it = [sys.executable, "-m", "vit21k", "hash", "--manifests", str(work / "m")]
    for number in range(-1, num_rounds):
        for name in ("one", *names):
            paths = [str(path) for path in (work / name).rglob("*") if path.is_file()]
            commands = {"cat": ["cat", *paths], "hash": [*hash_it, str(work / name)]}
            for what, command in commands.items():
                shutil.rmtree(work / "m", ignore_errors=True)
                if is_cold:
                    _drop_from_memory(paths)
                run = _run(command)
                if number >= 0:
                    times.setdefault((name, what), []).append(run)
    return times


def _drop_from_memory(paths: Sequence[str]) -> None:
    for path in paths:
        with Path(path).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _run(command: Sequence[str]) -> Times:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command[:6]} ended with {process.returncode}")
    return Times(wall, usage.ru_utime + usage.ru_stime)


def table_of(
    times: dict[tuple[str, str], list[Times]],
    files: Sequence[File],
    names: Sequence[str],
    args: argparse.Namespace,
) -> str:
    """Return the table in Markdown."""
    num_bytes = sum(len(file.content) for file in files)
    lines = [
        (
            f"{len(files):,} images of {num_bytes / 1e6:.0f} MB, "
            f"{'not ' if args.cold else ''}in memory before each run; {os.cpu_count()} processors; "
            f"medians of {args.rounds} rounds. Ratios are medians of the rounds' own; *without "
            "start*: without the time that `hash` takes for a single image."
        ),
        "",
        "| form | cat, s | hash, s | of `cat` | without start | CPU without start, s per GB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    start = times["one", "hash"]
    for name in names:
        cat, ours = times[name, "cat"], times[name, "hash"]
        cells = (
            statistics.median(run.wall for run in cat),
            statistics.median(run.wall for run in ours),
            statistics.median(a.wall / b.wall for a, b in zip(ours, cat, strict=True)),
            statistics.median(
                (a.wall - c.wall) / b.wall for a, b, c in zip(ours, cat, start, strict=True)
            ),
            statistics.median(
                (a.cpu - c.cpu) * 1e9 / num_bytes for a, c in zip(ours, start, strict=True)
            ),
        )
        lines.append(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
