"""Kill training (SIGKILL) at random steps and moments, resume, compare with a run left alone.

In four set-ups: one process; with EMA, mixing of images, accumulation and dropout; float16 with a
loss scale that overflows; two processes.  After the kill the same command must end with the files
of the undisturbed run, byte for byte: weights, moments, averages, state; with its losses and
metrics at every step; and must have trained on its batches, to the last pixel.

    python tools/faults/kill_training.py [--kills 25] [--setups NAME...] [--out PAGE | --json]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from training_children import (
    HOT_SCALER,
    finish,
    import_everything,
    kill,
    make_images,
    results,
    start,
    wait_for_step,
)

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

NUM_STEPS = 12
_STEP_SECONDS = 0.03
_MOST_TRIES = 3
_COMMON = (
    f"--set=total_steps={NUM_STEPS}",
    "--set=run.save_every_steps=2",
    "--set=run.eval_every_steps=5",
    "--set=model.proj_drop_rate=0.1",
)


class RunContext(NamedTuple):
    """A way to train."""

    words: str
    settings: Sequence[str] = ()
    world_size: int = 1


SETUPS = {
    "plain": RunContext("one process"),
    "ema": RunContext(
        "EMA, mixup and cutmix, 4 micro-batches a step, best checkpoints",
        (
            "--set=ema.decay=0.9",
            "--set=data.device_batch_size=2",
            "--set=augment.mixup_alpha=0.8",
            "--set=augment.cutmix_alpha=1.0",
            "--set=run.best_metric=loss",
        ),
    ),
    "fp16": RunContext(
        "float16, updates skipped by the loss scaler", ("--set=precision=fp16", HOT_SCALER)
    ),
    "two": RunContext(
        "two processes, 2 micro-batches a step", ("--set=data.device_batch_size=2",), 2
    ),
}


@dataclass
class Outcome:
    """What came of many kills.

    Attributes:
        resumed_from: How often from which step; 0 is the start.
        num_kills: How many struck; one that comes when the run is done is tried again.
        num_skipped: Updates of the undisturbed run that the loss scaler skipped.
        differences: What was not as in the undisturbed run.
    """

    resumed_from: Counter[int] = field(default_factory=Counter)
    num_kills: int = 0
    num_skipped: int = 0
    differences: list[str] = field(default_factory=list)


def kill_many(name: str, manifests: Path, home: Path, *, times: int, seed: int = 0) -> Outcome:
    """Train in the set-up *name* undisturbed, and *times* with a kill."""
    setup, draw, outcome = SETUPS[name], random.Random(f"{name} {seed}"), Outcome()
    settings = [*_COMMON, *setup.settings]
    finish(manifests, home / name / "whole", settings, world_size=setup.world_size)
    wanted = results(home / name / "whole")
    outcome.num_skipped = json.loads(wanted["state.json"])["progress"]["skipped_updates"]
    if HOT_SCALER in settings and not 0 < outcome.num_skipped < NUM_STEPS // 2:
        raise RuntimeError(f"{outcome.num_skipped} updates overflow in float16: nothing is shown")
    for number in range(_MOST_TRIES * times):
        if outcome.num_kills == times:
            break
        run_dir = home / name / f"killed-{number}"
        children = start(manifests, run_dir, settings, world_size=setup.world_size)
        step = draw.randrange(NUM_STEPS)
        if step:
            wait_for_step(run_dir, step)
        time.sleep(draw.uniform(0, _STEP_SECONDS))
        if -9 not in kill(children):
            continue  # it was done before the kill came
        outcome.num_kills += 1
        outcome.resumed_from[_latest_step(run_dir)] += 1
        finish(manifests, run_dir, settings, world_size=setup.world_size)
        found = results(run_dir)
        outcome.differences += [
            f"{name}, kill {number} after step {step}: {key} differs"
            for key in {**wanted, **found}
            if found.get(key) != wanted.get(key)
        ]
    return outcome


def _latest_step(run_dir: Path) -> int:
    latest = run_dir / "checkpoints" / "latest"
    return int(latest.read_text().strip().partition("-")[2]) if latest.exists() else 0


def table(outcomes: dict[str, Outcome]) -> str:
    """Return the figures as Markdown."""
    lines = ["| | kills | resumed from step (times) | differences |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        steps = ", ".join(f"{step} ({n})" for step, n in sorted(outcome.resumed_from.items()))
        skipped = f", {outcome.num_skipped} of {NUM_STEPS}" if outcome.num_skipped else ""
        cells = (SETUPS[name].words + skipped, outcome.num_kills, steps, len(outcome.differences))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the figures; fail if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each set-up")
    parser.add_argument("--setups", nargs="+", choices=SETUPS, default=list(SETUPS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="page with a block for the table")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    import_everything()
    with tempfile.TemporaryDirectory() as home:
        manifests = make_images(Path(home))
        outcomes: dict[str, Outcome] = {}
        for name in args.setups:
            start_time = time.monotonic()
            outcomes[name] = kill_many(
                name, manifests, Path(home), times=args.kills, seed=args.seed
            )
            print(f"{name}: {time.monotonic() - start_time:.0f} s", file=sys.stderr)
    if args.json:
        plain: dict[str, Any] = {name: vars(outcome) for name, outcome in outcomes.items()}
        print(json.dumps(plain, indent=2))
    elif args.out:
        write_or_check(args.out, {"kill_training": table(outcomes)}, check=False)
    else:
        print(table(outcomes))
    differences = [text for outcome in outcomes.values() for text in outcome.differences]
    for text in differences:
        print(text, file=sys.stderr)
    sys.exit(bool(differences))


if __name__ == "__main__":
    main()
