"""Trains the same run in several layouts; a program, so that it can fork before torch has threads.

python train_layouts.py HOME GROUP...
"""

import os
import signal
import sys
from pathlib import Path

from faults import wait_for
from training_children import (
    SMALL,
    finish,
    import_everything,
    make_images,
    start,
    wait_for_step,
)

__all__ = ["SMALL", "wait_for_step"]

TERMINATED = 143
# 7 images of each of 3 classes: an epoch is a step of 20 and a step of one image.
UNEVEN = (
    "--set=total_steps=6",
    "--set=data.global_batch_size=20",
    "--set=data.drop_last=false",
    "--set=data.device_batch_size=2",
    "--set=run.eval_every_steps=3",
    "--set=ema.decay=0.8",
    "--set=run.best_metric=loss",
)
FSDP = "--set=parallel.kind=fsdp"
LAYOUTS = {
    "one": (1, UNEVEN),
    "two": (2, UNEVEN),
    "four": (4, UNEVEN),
    "sharded": (2, (*UNEVEN, FSDP)),
}
LONG = ("--set=total_steps=60", "--set=data.global_batch_size=6", "--set=ema.decay=0.8")


def layouts(manifests: Path, home: Path) -> None:
    """Train in every layout."""
    for name, (world_size, settings) in LAYOUTS.items():
        finish(manifests, home / name, settings, world_size=world_size)


def elastic(manifests: Path, home: Path) -> None:
    """Train undisturbed, and on 2, then 1, then 2 processes, then 2 that share the weights."""
    finish(manifests, home / "whole", LONG)
    _stop_at(5, manifests, home / "elastic", 2)
    _stop_at(20, manifests, home / "elastic", 1)
    _stop_at(35, manifests, home / "elastic", 2)
    finish(manifests, home / "elastic", (*LONG, FSDP), world_size=2)


def _stop_at(step: int, manifests: Path, run_dir: Path, world_size: int) -> None:
    children = start(manifests, run_dir, LONG, world_size=world_size)
    wait_for_step(run_dir, step)
    os.kill(children[-1], signal.SIGTERM)
    codes = [wait_for(child) for child in children]
    if codes != [TERMINATED] * world_size:
        raise RuntimeError(f"{codes}: {run_dir.with_name(run_dir.name + '.log').read_text()}")


def signals(manifests: Path, home: Path) -> None:
    """Stop two processes by a signal to one of them, or to both; then resume."""
    for name, signum, to in (
        ("term-first", signal.SIGTERM, [0]),
        ("usr1-second", signal.SIGUSR1, [1]),
        ("term-all-twice", signal.SIGTERM, [0, 1, 0, 1]),
        ("sharded-usr1-all", signal.SIGUSR1, [0, 1]),
    ):
        settings = (*LONG, FSDP) if name.startswith("sharded") else LONG
        children = start(manifests, home / name, settings, world_size=2)
        wait_for_step(home / name, 4)
        for number in to:
            os.kill(children[number], signum)
        codes = [wait_for(child) for child in children]
        (home / f"{name}.codes").write_text(" ".join(map(str, codes)))


GROUPS = {"layouts": layouts, "elastic": elastic, "signals": signals}

if __name__ == "__main__":
    HOME, NAMES = Path(sys.argv[1]), sys.argv[2:]
    import_everything(sharding=True)
    MANIFESTS = make_images(HOME, per_class=7)
    for NAME in NAMES:
        GROUPS[NAME](MANIFESTS, HOME)
