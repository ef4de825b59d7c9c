"""Time `vit21k hash` against md5sum, xxhsum, four duplicate finders and a C++ yardstick.

    python tools/bench/bench_hash.py --files 30000 --cold --out docs/internals/benchmarks.md

The tree has real-sized JPEGs: those of --images if it is given, else random bytes in a JPEG's
frame, each with a comment of its own; one in twelve is a copy under another class.  With --dense
sizes are multiples of 8 KiB, so that they collide as they do among 14 million files.  Every round
runs each command once, in turn; ratios are medians of the rounds' own ratios.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

_HERE = Path(__file__).parent
_VIT21K = [sys.executable, "-m", "vit21k", "hash"]
_FINDERS = ("rdfind", "jdupes", "fdupes", "rmlint")
_ALONE = """
import json, sys, time
from pathlib import Path
from vit21k.prep.hash_tree import hash_tree
wall, cpu = time.perf_counter(), time.process_time()
num_workers = int(sys.argv[3]) or None
hash_tree(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=num_workers, mode=sys.argv[4])
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""
_DIGESTS_ONLY = """
import json, os, sys, time
from vit21k.prep.hash_chunks import ChunkHasher
from vit21k.prep.hash_chunks import hash_in_threads, suitable_workers
from vit21k.prep.hash_tree import chunks_of
hasher = ChunkHasher(os.fsencode(sys.argv[1]), algorithm="xxh3_128")
wall, cpu = time.perf_counter(), time.process_time()
num_workers = int(sys.argv[3]) or suitable_workers(hasher)
for _ in hash_in_threads(hasher, chunks_of(hasher), num_workers):
    pass
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def main() -> None:
    """Make the tree, run the rounds, print or store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=6_000)
    parser.add_argument("--mean-bytes", type=int, default=92_000, help="of synthetic files")
    parser.add_argument("--images", type=Path, help="folder of JPEGs to make the tree of")
    parser.add_argument("--dense", action="store_true", help="make sizes collide")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, help="of vit21k; default: its own")
    parser.add_argument("--warm", action="store_true", help="with the tree in memory (default)")
    parser.add_argument("--cold", action="store_true", help="with nothing in memory")
    parser.add_argument("--only", help="comma-separated parts of the names of commands")
    parser.add_argument("--work", type=Path, help="folder for the tree; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print all runs as JSON")
    parser.add_argument("--out", type=Path, help="file whose block is replaced")
    parser.add_argument("--block", default="bench_hash", help="its name")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        num_bytes, copies = _make_tree(work / "tree", args)
        bench = Bench(work, args.workers, args.only)
        states = ["cold"] * args.cold + ["warm"] * (args.warm or not args.cold)
        runs = {state: bench.measure(args.rounds, is_cold=state == "cold") for state in states}
        groups = bench.compare_groups(copies)
    lines = [_heading(args, num_bytes, copies, bench.how_cold), "", *_table(runs), ""]
    lines += [*_share_read(runs.get("cold", {}), num_bytes), groups]
    print(json.dumps(runs, indent=1) if args.json else "\n".join(lines))
    if args.out:
        write_or_check(args.out, {args.block: "\n".join(lines)}, check=False)


Run = dict[str, float]
"""Seconds of wall clock and CPU, MiB of memory at most, MB read from the disk."""


class Bench:
    """Runs commands over one tree.

    Attributes:
        how_cold: How the system is made to forget the tree.
    """

    def __init__(self, work: Path, num_workers: int | None, only: str | None) -> None:
        self._work = work
        self._tree, self._manifests = work / "tree", work / "m"
        self._num_workers = num_workers
        self._commands = {
            name: command
            for name, command in self._all_commands().items()
            if not only or any(part in name for part in only.split(","))
        }
        self.how_cold = "/proc/sys/vm/drop_caches"

    def _all_commands(self) -> dict[str, list[str]]:
        tree, manifests = str(self._tree), str(self._manifests)
        workers = str(self._num_workers or 0)
        listed = f"find {tree} -type f -print0 | xargs -0"
        commands = {
            "md5sum": ["sh", "-c", f"{listed} md5sum"],
            "xxhsum -H2": ["sh", "-c", f"{listed} xxhsum -H2"],
            "rdfind": ["rdfind", "-dryrun", "true", tree],
            "jdupes": ["jdupes", "-q", "-r", tree],
            "fdupes": ["fdupes", "-q", "-r", tree],
            # To /dev/null it would write by putting a file in its place, if root lets it.
            "rmlint": ["rmlint", "-T", "df", "-o", "summary:stdout", tree],
        }
        commands = {name: line for name, line in commands.items() if shutil.which(name.split()[0])}
        if floor := _yardstick(self._work):
            commands["C++ yardstick"] = [str(floor), tree, "16"]
        hash_it = [*_VIT21K, tree, "--manifests", manifests]
        if self._num_workers:
            hash_it += ["--num-workers", workers]
        alone = [tree, manifests, workers]
        return commands | {
            "vit21k hash": hash_it,
            "vit21k hash --mode quick": [*hash_it, "--mode", "quick"],
            "vit21k hash, unchanged": hash_it,
            "hash_tree": [sys.executable, "-c", _ALONE, *alone, "full"],
            "hash_tree, quick": [sys.executable, "-c", _ALONE, *alone, "quick"],
            "digests only": [sys.executable, "-c", _DIGESTS_ONLY, *alone],
            "digests only, without a compiler": [
                *("env", "CC=false", f"XDG_CACHE_HOME={self._work / 'empty'}"),
                *(sys.executable, "-c", _DIGESTS_ONLY, *alone),
            ],
        }

    def measure(self, num_rounds: int, *, is_cold: bool) -> dict[str, list[Run]]:
        """Return what each run of each command took, in rounds; a first round warms up."""
        runs: dict[str, list[Run]] = {name: [] for name in self._commands}
        for number in range(-1 if not is_cold else 0, num_rounds):
            for name, command in self._commands.items():
                if name == "vit21k hash, unchanged" and "vit21k hash" in self._commands:
                    self._run("", self._commands["vit21k hash"])
                else:
                    shutil.rmtree(self._manifests, ignore_errors=True)
                if is_cold:
                    self._forget()
                run = self._run(name, command)
                if number >= 0:
                    runs[name].append(run)
        return runs

    def _run(self, name: str, command: Sequence[str]) -> Run:
        before = _sectors_read()
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=self._work
        )
        output = process.stdout.read() if process.stdout else b""
        _, status, usage = os.wait4(process.pid, 0)
        wall, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1):
            raise RuntimeError(f"{name} ended with {process.returncode}")
        if name.startswith(("hash_tree", "digests")):  # without the interpreter's start and imports
            wall, cpu = json.loads(output)
        mb_read = (_sectors_read() - before) * 512 / 1e6
        return {"wall": wall, "cpu": cpu, "mib": usage.ru_maxrss / 1024, "mb_read": mb_read}

    def _forget(self) -> None:
        """Have the system forget all files."""
        os.sync()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        except OSError:
            self.how_cold = "posix_fadvise(DONTNEED), which leaves folders and inodes in memory"
            for path in self._tree.glob("*/*"):
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    def compare_groups(self, num_copies: int) -> str:
        """Return in words whether all find the same groups of equal files."""
        found: dict[str, Groups] = {}
        for mode in ("full", "quick"):
            shutil.rmtree(self._manifests, ignore_errors=True)
            alone = [str(self._tree), str(self._manifests), str(self._num_workers or 0), mode]
            subprocess.run([sys.executable, "-c", _ALONE, *alone], check=True, capture_output=True)
            found[f"vit21k ({mode})"] = _groups_of_manifest(self._manifests, self._tree)
        finders: dict[str, Callable[[], str]] = {
            "jdupes": lambda: _output(["jdupes", "-q", "-r", str(self._tree)]),
            "rmlint": lambda: _output(
                ["rmlint", "-T", "df", "-o", "fdupes:stdout", str(self._tree)]
            ),
        }
        for name, find in finders.items():
            if shutil.which(name):
                found[name] = _groups_of_text(find(), self._tree)
        first = found["vit21k (full)"]
        num_redundant = sum(len(group) - 1 for group in first)
        verdict = (
            "the same" if all(groups == first for groups in found.values()) else "NOT the same"
        )
        return (
            f"Groups of equal files by {', '.join(found)}: {verdict}; {len(first):,} groups, "
            f"{num_redundant:,} files to merge, {num_copies:,} planted."
        )


def _make_tree(tree: Path, args: argparse.Namespace) -> tuple[int, int]:
    """Make the tree; return its bytes, and how many of its files are copies of others.

    Another process does it: what this one has taken would count as memory of those it starts.
    """
    options = [str(tree), str(args.files), str(args.mean_bytes), str(args.images or "")]
    made = _output([sys.executable, str(_HERE / "bench_hash_tree.py"), *options, str(args.dense)])
    num_bytes, num_copies = json.loads(made)
    return num_bytes, num_copies


def _yardstick(work: Path) -> Path | None:
    """Compile the C++ program; None if that cannot be done here."""
    source, program = _HERE / "yardstick" / "hash_floor.cpp", work / "hash_floor"
    flags = ["-O3", "-march=native", "-std=c++17", "-pthread"]
    try:
        subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    except (OSError, subprocess.CalledProcessError):
        print("no C++ yardstick: it takes g++ and xxhash.h", file=sys.stderr)
        return None
    return program


def _sectors_read() -> int:
    """Return how many sectors of 512 bytes all whole disks have been read since the start."""
    rows = [line.split() for line in Path("/proc/diskstats").read_text().splitlines()]
    return sum(int(row[5]) for row in rows if Path("/sys/block", row[2]).exists())


Groups = set[frozenset[str]]


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def _groups_of_text(text: str, tree: Path) -> Groups:
    """Return groups of lines that blank lines end, without the folder."""
    prefix = f"{tree}/"
    groups = ([line for line in part.splitlines() if line] for part in text.split("\n\n"))
    return {frozenset(p.removeprefix(prefix) for p in group) for group in groups if len(group) > 1}


def _groups_of_manifest(manifests: Path, _tree: Path) -> Groups:
    import vit21k  # noqa: PLC0415 (see `_make_tree`)

    rows = vit21k.read_manifest("digests", manifests, ["path", "digest"]).to_pandas().dropna()
    paths = rows.groupby("digest")["path"].agg(list)
    return {frozenset(group) for group in paths if len(group) > 1}


def _heading(args: argparse.Namespace, num_bytes: int, copies: int, how_cold: str) -> str:
    what = "real" if args.images else "synthetic"
    sizes = ", sizes in multiples of 8 KiB" if args.dense else ""
    cold = f"; cold: after {how_cold}" if args.cold else ""
    return (
        f"{args.files:,} {what} JPEGs, {num_bytes / 1e9:.2f} GB, {copies:,} of them copies{sizes}; "
        f"{os.cpu_count()} processors ({platform.machine()}){cold}; the yardstick has 16 threads; "
        f"vit21k has {_compiled()}; "
        f"{args.rounds} rounds, medians (range), ratios of the rounds' own."
    )


def _compiled() -> str:
    from vit21k.prep.scan import compiled_reader  # noqa: PLC0415 (see `_make_tree`)

    reader, why = compiled_reader()
    return "its compiled extension" if reader else f"no compiled extension ({why})"


def _table(runs: dict[str, dict[str, list[Run]]]) -> list[str]:
    lines = [
        (
            "| | command | wall, s | of md5sum | of fastest finder | of yardstick "
            "| CPU, s | of xxhsum | MiB | MB read |"
        ),
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for state, by_name in runs.items():
        for name, its_runs in by_name.items():
            wall = [run["wall"] for run in its_runs]
            cells: list[Any] = [
                f"{statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})",
                _ratio(its_runs, by_name.get("md5sum"), "wall"),
                _ratio(its_runs, _fastest_finder(by_name), "wall"),
                _ratio(its_runs, by_name.get("C++ yardstick"), "wall"),
                f"{statistics.median(run['cpu'] for run in its_runs):.2f}",
                _ratio(its_runs, by_name.get("xxhsum -H2"), "cpu"),
                f"{max(run['mib'] for run in its_runs):.0f}",
                f"{statistics.median(run['mb_read'] for run in its_runs):.0f}",
            ]
            lines.append(f"| {state} | {name} | " + " | ".join(cells) + " |")
    return lines


def _fastest_finder(by_name: dict[str, list[Run]]) -> list[Run]:
    """Return, of each round, the run of the duplicate finder that was done first."""
    rounds = zip(*(by_name[name] for name in _FINDERS if name in by_name), strict=True)
    return [min(runs, key=lambda run: run["wall"]) for runs in rounds]


def _share_read(cold: dict[str, list[Run]], num_bytes: int) -> list[str]:
    """Say which part of the tree a quick run read from the disk.

    An unchanged run reads no file of the tree: what it reads are folders, inodes and Python.
    """
    quick, unchanged = (cold.get(f"vit21k hash{name}") for name in (" --mode quick", ", unchanged"))
    if not quick or not unchanged:
        return []
    read, overhead = (
        statistics.median(run["mb_read"] for run in runs) for runs in (quick, unchanged)
    )
    share = (read - overhead) * 1e6 / num_bytes
    return [
        (
            f"`--mode quick` read {share:.0%} of the bytes of the tree, without the "
            f"{overhead:.0f} MB (folders, inodes, Python itself) that an unchanged run reads, too."
        ),
        "",
    ]


def _ratio(runs: list[Run], base: list[Run] | None, key: str) -> str:
    if not base:
        return ""
    ratios = [run[key] / other[key] for run, other in zip(runs, base, strict=True)]
    return f"{statistics.median(ratios):.2f}"


if __name__ == "__main__":
    main()
