"""One process of `vit21k train` in several: what each of them says when something is not the same.

Usage: ``python rank_scenarios.py HOME PORT...``, once for each process, as `run_processes` does; a
line of JSON on stdout for each scenario: its name, exit code and stderr.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from vit21k.cli.app import main
from vit21k.data.dataset import ImageDataset
from vit21k.training import loop

RANK = int(os.environ.get("RANK", "0"))
SMALL = [
    "train",
    "--recipe=tiny",
    "--device=cpu",
    "--peak-tflops=1",
    "--num-workers=1",
    *(
        f"--set={field}"
        for field in (
            "total_steps=6",
            "model.img_size=16",
            "model.embed_dim=16",
            "model.depth=1",
            "data.eval_resize=16",
            "data.global_batch_size=4",
            "schedule.warmup_steps=0",
            "run.save_every_steps=2",
        )
    ),
]
NAMES = ("local_folders", "other_recipe", "locked", "no_manifests", "bad_image", "killed")


def arguments(name, home):
    """Return the arguments of this process in the scenario *name*."""
    run_dir, manifests, more = home / "runs" / name, home / "manifests", []
    if name == "local_folders":
        run_dir = home / "runs" / ("begun" if RANK == 0 else "not_begun")
    if name == "other_recipe" and RANK:
        more = ["--set=optim.lr=1e-5"]
    if name == "no_manifests" and RANK:
        manifests = home / "elsewhere"
    if name == "bad_image":
        more = ["--set=data.on_bad_image=fail"]
    return [*SMALL, f"--run-dir={run_dir}", f"--manifests={manifests}", *more]


@contextlib.contextmanager
def trouble(name):
    """Let the second process meet an unreadable image, or end in the middle of the run."""
    plain_read, plain_update, calls = ImageDataset.read_bytes, loop._update, []

    def read_bytes(self, row):
        calls.append(row)
        if len(calls) > 8:
            raise OSError(5, "Input/output error")
        return plain_read(self, row)

    def update(*args, **kwargs):
        calls.append(0)
        if len(calls) == 3:
            os._exit(9)
        plain_update(*args, **kwargs)

    if RANK and name == "bad_image":
        ImageDataset.read_bytes = read_bytes
    if RANK and name == "killed":
        loop._update = update
    yield
    ImageDataset.read_bytes, loop._update = plain_read, plain_update


def play(name, home, port):
    """Run one scenario; return its exit code and what was said."""
    os.environ["MASTER_PORT"] = port
    sys.argv = ["vit21k", *arguments(name, home)]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), trouble(name):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return code, said.getvalue()


if __name__ == "__main__":
    _, home, *ports = sys.argv
    for name, port in zip(NAMES, ports, strict=True):
        code, said = play(name, Path(home), port)
        sys.stdout.write(json.dumps([name, code, said]) + "\n")
        sys.stdout.flush()
