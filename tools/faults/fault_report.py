"""Kill and starve every command that writes; print the tables of docs/internals/reliability.md.

- Kills at random moments of each command.
- A kill, a full disk (ENOSPC) and a failing disk (EIO) at every write, fsync and rename of each
  (needs strace).
- A limit on the size of files, which is what a quota looks like.
- Flipped bits in every kind of manifest.

After each the files must be the old ones or the new ones and readable, and the same command must
then give, byte for byte, what it gives undisturbed, and leave nothing else behind.

    python tools/faults/fault_report.py [--kills 500] [--every 1] [--flips 300] [--out PAGE | --json]
                                 [--stages NAME...] [--parts NAME...]
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_stages import stages
from faults import (
    CALLS,
    EFFECTS,
    EXIT_STORAGE,
    Stage,
    Tally,
    flipped,
    fork,
    has_strace,
    inject_everywhere,
    judge,
    kill_at_random,
    reset,
    run_undisturbed,
    wait_for,
)

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

TITLES = {
    "kills": "Kills at random moments",
    "limits": "Limits on the size of a file",
    "flips": "Flipped bits",
    "calls": "At every write, fsync and rename",
}
_LIMITS = (0, 100, 1_000, 2_000, 4_000)


def kills(all_stages: dict[str, Stage], work: Path, times: int) -> dict[str, Tally]:
    """Kill each stage *times* at random moments."""
    return {name: kill_at_random(stage, work, times=times) for name, stage in all_stages.items()}


def injections(all_stages: dict[str, Stage], work: Path, every: int) -> dict[str, Tally]:
    """Let each *every*-th call of each kind of each stage end in each way."""
    return {
        f"{name}, {call}, {effect}": inject_everywhere(stage, work, call, effect, every=every)
        for name, stage in all_stages.items()
        for call in CALLS
        for effect in EFFECTS
    }


def limits(all_stages: dict[str, Stage], work: Path) -> dict[str, Tally]:
    """Run each stage with several limits on the size of a file."""
    return {name: limit_files(stage, work) for name, stage in all_stages.items()}


def limit_files(stage: Stage, work: Path) -> Tally:
    """Run *stage* with each limit; where it is too small the command must say that the disk is."""
    references = run_undisturbed(stage, work)
    written = [new for name, new in references.new.items() if references.old.get(name) != new]
    largest = max(map(len, written))
    tally = Tally()
    for limit in _LIMITS:
        reset(stage, work)
        code = wait_for(fork(_limited(stage.run, limit), work))
        expected = {EXIT_STORAGE} if limit < largest else {0}
        judge(stage, work, references, code, tally, expected=expected)
    return tally


def _limited(run: Callable[[], int], limit: int) -> Callable[[], int]:
    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return run()

    return limited


def flips(all_stages: dict[str, Stage], work: Path, times: int) -> dict[str, Tally]:
    """Flip *times* bits of each manifest of the pipeline; each must be refused when it is read."""
    from vit21k.errors import ManifestError  # noqa: PLC0415
    from vit21k.manifest.io import open_manifest  # noqa: PLC0415
    from vit21k.manifest.schema import KINDS  # noqa: PLC0415

    reset(all_stages["export-lists"], work)
    tallies = {}
    for path in sorted((work / "m").glob("*.parquet")):
        tally, whole = Tally(), path.read_bytes()
        for bit, content in flipped(whole, times):
            path.write_bytes(content)
            try:
                open_manifest(path, KINDS[path.stem], allow_stale=True).read()
            except ManifestError:
                tally.found["refused"] += 1
            else:
                tally.failures.append(f"{path.name}: bit {bit} passes")
            tally.codes[0] += 1
        path.write_bytes(whole)
        tallies[path.stem] = tally
    return tallies


def summary(title: str, tallies: dict[str, Tally]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"### {title}", "", "| | faults | what was found then | exit codes | failures |"]
    lines.append("|---|---|---|---|---|")
    for name, tally in tallies.items():
        found = ", ".join(f"{count} {state}" for state, count in sorted(tally.found.items()))
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(tally.codes.items()))
        lines.append(
            f"| {name} | {tally.num_faults:,} | {found} | {codes} | {len(tally.failures)} |"
        )
    total = sum(tally.num_faults for tally in tallies.values())
    bad = sum(len(tally.failures) for tally in tallies.values())
    return [*lines, "", f"{total:,} faults, {bad} failures.", ""]


def tables(results: dict[str, dict[str, Tally]]) -> str:
    """Return all tables as Markdown."""
    return "\n".join(line for item in results.items() for line in summary(*item))


def by_stage(tallies: dict[str, Tally]) -> dict[str, Tally]:
    """Put the tallies of one stage and effect together."""
    sums: dict[str, Tally] = {}
    for name, tally in tallies.items():
        stage, _, effect = name.split(", ")
        total = sums.setdefault(f"{stage}, {effect}", Tally())
        total.found += tally.found
        total.codes += tally.codes
        total.failures += tally.failures
    return sums


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500, help="of each command")
    parser.add_argument("--every", type=int, default=1, help="inject at every n-th call")
    parser.add_argument("--flips", type=int, default=300, help="of each manifest")
    parser.add_argument("--stages", nargs="+", help="only these commands")
    parser.add_argument("--parts", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--out", type=Path, help="page with a block for the tables")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def run(args: argparse.Namespace, home: Path) -> dict[str, dict[str, Tally]]:
    """Do everything; return the tallies by title."""
    every_stage, work = stages(home), home / "work"
    some = {name: every_stage[name] for name in args.stages or every_stage}
    parts: dict[str, Callable[[], dict[str, Tally]]] = {
        "kills": lambda: kills(some, work, args.kills),
        "limits": lambda: limits(some, work),
        "flips": lambda: flips(every_stage, work, args.flips),
        "calls": lambda: by_stage(injections(some, work, args.every)),
    }
    results = {}
    for name in args.parts:
        if name == "calls" and not has_strace():
            continue
        start = time.monotonic()
        results[TITLES[name]] = parts[name]()
        print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return results


def main() -> None:
    """Print the figures; fail if anything happened that must not."""
    args = parse_args()
    with tempfile.TemporaryDirectory() as home:
        results = run(args, Path(home))
    if args.json:
        plain: dict[str, Any] = {
            title: {name: vars(tally) for name, tally in tallies.items()}
            for title, tallies in results.items()
        }
        print(json.dumps(plain, indent=2))
    elif args.out:
        write_or_check(args.out, {"fault_report": tables(results)}, check=False)
    else:
        print(tables(results))
    failures = [
        text
        for tallies in results.values()
        for tally in tallies.values()
        for text in tally.failures
    ]
    for text in failures:
        print(text, file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
