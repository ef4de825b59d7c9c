"""`relabel`, `make-val`, `import-md5sum` and `export-lists` at the size of ImageNet-21K.

Made-up manifests of 14,197,122 files go through the commands, each as a process of its own, whose
wall time and peak memory (resident, as the kernel counts it) are measured round after round;
medians are reported.  Then every row of every result is compared with an oracle that sorts
everything, and with DuckDB and Polars where they are installed.

    python tools/bench/bench_relabel.py [--rows N] [--num-rounds 3] [--work DIR] [--out PAGE | --json]
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

NUM_FILES = 14_197_122
PER_CLASS = 20
GOALS = {  # seconds, GiB
    "relabel": (8.0, 1.0),
    "make-val": (4.0, None),
    "make-val --seed 0": (4.0, None),
    "make-val --holdout": (4.0, None),
    "make-val --holdout --seed 0": (4.0, None),
    "import-md5sum": (10.0, 0.9),
    "export-lists": (5.0, None),
}


class Folders(NamedTuple):
    """What is made, where.

    Attributes:
        made: The manifests; output of `relabel` and `make-val` is next to `digests.parquet`.
        imported: What `import-md5sum` makes.
        lists: What `export-lists` makes.
        md5sum: What md5sum would have printed.
    """

    made: Path
    imported: Path
    lists: Path
    md5sum: Path


def folders(work: Path) -> Folders:
    """Return the paths below *work*."""
    return Folders(work / "made", work / "imported", work / "lists", work / "md5sum.txt")


def commands(at: Folders) -> dict[str, list[str]]:
    """Return the arguments of `vit21k` for each thing that is measured, in order."""
    manifests = ["--manifests", str(at.made)]
    from_list = ["import-md5sum", str(at.md5sum), "--strip-prefix", "/data/imagenet21k"]
    return {
        "relabel": ["relabel", *manifests],
        "make-val --holdout --seed 0": ["make-val", *manifests, "--holdout", "--seed", "0"],
        "make-val --holdout": ["make-val", *manifests, "--holdout"],
        "make-val --seed 0": ["make-val", *manifests, "--seed", "0"],
        "make-val": ["make-val", *manifests],
        "import-md5sum": [*from_list, "--manifests", str(at.imported)],
        "export-lists": ["export-lists", *manifests, "--out", str(at.lists)],
    }


def measure(arguments: list[str]) -> dict[str, float]:
    """Run `vit21k` with *arguments*; return wall and CPU seconds, and GiB at the peak.

    This process is small, so that the peak of the other is its own (a child begins with its
    parent's).
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "vit21k", *arguments], stderr=subprocess.PIPE
    ) as process:
        stderr = process.stderr.read() if process.stderr else b""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {stderr.decode()}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gib": usage.ru_maxrss / 2**20,
    }


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure of each command, and the fastest time."""
    names = rounds[0]
    result = {
        name: {
            figure: statistics.median(values[name][figure] for values in rounds)
            for figure in names[name]
        }
        for name in names
    }
    for name, figures in result.items():
        figures["least_seconds"] = min(values[name]["seconds"] for values in rounds)
    return result


def make(at: Folders, num_files: int) -> None:
    """Make the input, unless it is there."""
    from made_digests import make_digests, make_md5sum  # noqa: PLC0415  (this process stays small)

    if not (at.made / "digests.parquet").exists():
        make_digests(at.made, num_files)
    if not at.md5sum.exists():
        make_md5sum(at.made, at.md5sum)


def check(at: Folders) -> dict[str, int]:
    """Compare every row with the oracle; return how many rows of each were compared."""
    import relabel_oracle as oracle  # noqa: PLC0415

    wanted = oracle.expected(at.made)
    rows = {
        "relabel": oracle.check_relabel(at.made, wanted),
        "make-val": oracle.check_make_val(at.made, wanted, PER_CLASS),
        "import-md5sum": oracle.check_import(at.made, at.imported),
        "export-lists": oracle.check_lists(at.made, at.lists, wanted, PER_CLASS),
    }
    for peer in oracle.PEERS:
        if importlib.util.find_spec(peer):
            rows[peer] = oracle.check_peer(peer, at.made, wanted)
    return rows


def sizes(at: Folders) -> dict[str, int]:
    """Return the bytes of each manifest."""
    return {path.name: path.stat().st_size for path in sorted(at.made.glob("*.parquet"))}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=NUM_FILES)
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep what is made there, to measure again")
    parser.add_argument("--no-check", action="store_true", help="only measure")
    parser.add_argument("--out", type=Path, help="page with a block for the table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=["make", "check"], help=argparse.SUPPRESS)
    return parser.parse_args()


def run_step(step: str, args: argparse.Namespace, work: Path) -> str:
    """Do *step* in a process of its own, so that this one stays small; return what it printed."""
    command = [sys.executable, __file__, "--step", step, "--rows", str(args.rows)]
    return subprocess.run(
        [*command, "--work", str(work)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def run(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Make, measure, compare; return the figures."""
    at = folders(work)
    run_step("make", args, work)
    rounds = [
        {name: measure(command) for name, command in commands(at).items()}
        for _ in range(args.num_rounds)
    ]
    rows = {} if args.no_check else json.loads(run_step("check", args, work))
    return {
        "num_files": args.rows,
        "num_cpus": len(os.sched_getaffinity(0)),
        "figures": medians(rounds),
        "rows_equal_to_the_oracle": rows,
        "bytes": sizes(at),
    }


def table(result: dict[str, Any]) -> str:
    """Format the result as the Markdown that docs/internals/benchmarks.md keeps."""
    lines = [
        "| command | median s | least s | CPU s | peak GiB | goal |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in result["figures"].items():
        seconds, gib = GOALS[name]
        goal = f"{seconds:g} s" + (f", {gib:g} GiB" if gib else "")
        lines.append(
            f"| `{name}` | {figures['seconds']:.1f} | {figures['least_seconds']:.1f} "
            f"| {figures['cpu_seconds']:.1f} | {figures['peak_gib']:.2f} | {goal} |"
        )
    lines.append("")
    lines += [
        f"- `{name}`: {rows:,} rows equal to the oracle's"
        for name, rows in result["rows_equal_to_the_oracle"].items()
    ]
    lines += [f"- `{name}`: {size / 1e6:,.1f} MB" for name, size in result["bytes"].items()]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; or do one step."""
    args = parse_args()
    steps: dict[str, Callable[[], object]] = {
        "make": lambda: make(folders(args.work), args.rows),
        "check": lambda: print(json.dumps(check(folders(args.work)))),
    }
    if args.step:
        steps[args.step]()
        return
    with tempfile.TemporaryDirectory() as temporary:
        result = run(args, args.work or Path(temporary))
    if args.out:
        write_or_check(args.out, {"bench_relabel": table(result)}, check=False)
    else:
        print(json.dumps(result, indent=2) if args.json else table(result))


if __name__ == "__main__":
    main()
