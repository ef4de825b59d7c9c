"""Trains with everything that augmentation has, and a bad image; a program, so that it can fork.

python train_augmented.py HOME
"""

import os
import signal
import sys
from pathlib import Path

from faults import wait_for
from training_children import finish, import_everything, make_images, start, wait_for_step

TERMINATED = 143
# 7 images of each of 3 classes, one of them bad: an epoch is 2 steps, and 5 images wait.
AUGMENTED = (
    "--set=total_steps=14",
    "--set=data.device_batch_size=4",
    "--set=data.on_bad_image=skip",
    "--set=data.max_bad_rate=1.0",
    "--set=data.repeats=2",
    "--set=augment.policy=rand_increasing",
    "--set=augment.magnitude_std=0.5",
    "--set=augment.erase_rate=0.5",
    "--set=augment.mixup_alpha=0.8",
    "--set=augment.cutmix_alpha=1.0",
)
BALANCED = ("--set=data.repeats=1", "--set=data.sampling=class_balanced")


def train_all(home: Path, manifests: Path) -> None:
    """Train in one process and in two; stop two, and resume with one; balance classes in both."""
    finish(manifests, home / "one", AUGMENTED)
    finish(manifests, home / "two", AUGMENTED, world_size=2)
    children = start(manifests, home / "stopped", AUGMENTED, world_size=2)
    wait_for_step(home / "stopped", 5)
    os.kill(children[0], signal.SIGTERM)
    codes = [wait_for(child) for child in children]
    if codes != [TERMINATED] * 2:
        raise RuntimeError(f"{codes}: {(home / 'stopped.log').read_text()}")
    finish(manifests, home / "stopped", AUGMENTED)
    finish(manifests, home / "balanced-one", (*AUGMENTED, *BALANCED))
    finish(manifests, home / "balanced-two", (*AUGMENTED, *BALANCED), world_size=2)


if __name__ == "__main__":
    HOME = Path(sys.argv[1])
    import_everything()
    MANIFESTS = make_images(HOME, per_class=7)
    (HOME / "tree" / "n00000001" / "n00000001_5.JPEG").write_bytes(b"no image")
    train_all(HOME, MANIFESTS)
