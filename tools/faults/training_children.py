"""`vit21k train` in forked children of a process that has imported everything: cheap to start.

The children note every batch that they train on, so that two runs can be compared exactly.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from faults import wait_for

SMALL = (
    "--recipe=tiny",
    "--device=cpu",
    "--num-workers=1",
    "--set=model.img_size=16",
    "--set=model.embed_dim=16",
    "--set=model.depth=2",
    "--set=data.eval_resize=16",
    "--set=data.global_batch_size=8",
    "--set=data.device_batch_size=8",
    "--set=schedule.warmup_steps=2",
    "--set=run.log_every_steps=1",
)
HOT_SCALER = "hot scaler"


def make_images(home: Path, *, num_classes: int = 3, per_class: int = 8) -> Path:
    """Make a small tree of noise, and manifests of it, below *home*; return the manifests.

    Done in a child: whatever threads it leaves must not be in the process that forks.
    """
    code = wait_for(_fork(lambda: _make_images(home, num_classes, per_class), home / "make.log"))
    if code:
        raise RuntimeError((home / "make.log").read_text())
    return home / "manifests"


def _make_images(home: Path, num_classes: int, per_class: int) -> int:
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    from vit21k.prep.hash_tree import hash_tree  # noqa: PLC0415
    from vit21k.prep.relabel import relabel  # noqa: PLC0415
    from vit21k.prep.split import make_val  # noqa: PLC0415

    generator = np.random.default_rng(0)
    for wnid in [f"n{number:08}" for number in range(num_classes)]:
        (home / "tree" / wnid).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "tree" / wnid / f"{wnid}_{number}.JPEG")
    hash_tree(home / "tree", home / "manifests")
    relabel(home / "manifests")
    make_val(home / "manifests", per_class=2)
    return 0


def import_everything(*, sharding: bool = False) -> None:
    """Import what a child will need; no tensor is touched."""
    import torch  # noqa: PLC0415

    import vit21k.cli.app  # noqa: PLC0415
    import vit21k.training.run  # noqa: PLC0415

    torch.set_num_threads(1)
    if sharding:
        import vit21k.training.gradients  # noqa: F401, PLC0415


def start(
    manifests: Path, run_dir: Path, settings: Sequence[str], *, world_size: int = 1
) -> list[int]:
    """Start training in *run_dir*, in so many processes; return their numbers.

    A setting "hot scaler" is none of the recipe's: the scale of the loss begins so high that
    float16 overflows, and grows every 3 steps.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    of_recipe = [setting for setting in settings if setting != HOT_SCALER]
    arguments = ["train", *SMALL, *of_recipe, f"--manifests={manifests}", f"--run-dir={run_dir}"]

    def train(rank: int) -> int:
        if world_size > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        if HOT_SCALER in settings:
            _heat_scaler()
        _note_batches(run_dir.parent / f"{run_dir.name}.batches-{rank}.jsonl")
        from vit21k.cli.app import main  # noqa: PLC0415

        sys.argv = ["vit21k", *arguments]
        main()
        return 0

    log = _log_of(run_dir)
    return [_fork(lambda rank=rank: train(rank), log) for rank in range(world_size)]


def finish(manifests: Path, run_dir: Path, settings: Sequence[str], *, world_size: int = 1) -> None:
    """Train to the end.

    Raises:
        RuntimeError: A process failed; the message is what they said.
    """
    children = start(manifests, run_dir, settings, world_size=world_size)
    codes = [wait_for(child) for child in children]
    if any(codes):
        raise RuntimeError(f"{codes}: {_log_of(run_dir).read_text()}")


def kill(children: Sequence[int]) -> list[int]:
    """End *children* as a power cut would; return their codes: -9, or 0 if they were done."""
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return [wait_for(child) for child in children]


def results(run_dir: Path) -> dict[str, Any]:
    """Return what a run ended with: its last checkpoint's files, its log, every batch it used."""
    folder = run_dir / "checkpoints"
    last = folder / (folder / "latest").read_text().strip()
    batches: dict[str, set[str]] = {}
    for step, rank, part, digest, _ in _noted(run_dir):
        batches.setdefault(f"step {step}, process {rank}, part {part}", set()).add(digest)
    return {
        **{path.name: path.read_bytes() for path in last.iterdir()},
        "log": [
            dict(_results_of(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()
        ],
        "batches": batches,
    }


def order_of(run_dir: Path) -> dict[int, list[tuple[int, int]]]:
    """Return each step's (position in the run, row) of every image, over all processes."""
    order: dict[int, set[tuple[int, int]]] = {}
    for step, _, _, _, images in _noted(run_dir):
        order.setdefault(step, set()).update(tuple(image) for image in images)
    return {step: sorted(images) for step, images in sorted(order.items())}


def _log_of(run_dir: Path) -> Path:
    return run_dir.parent / f"{run_dir.name}.log"


def _noted(run_dir: Path) -> Iterator[list[Any]]:
    for path in run_dir.parent.glob(f"{run_dir.name}.batches-*.jsonl"):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # cut off by the kill
                yield json.loads(line)


def losses(run_dir: Path) -> list[float]:
    """Return the loss of every step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _results_of(line: str) -> Iterator[tuple[str, Any]]:
    content: Mapping[str, Any] = json.loads(line)
    wanted = ("step", "loss", "lr", "grad_norm", "images_seen")
    return ((name, content[name]) for name in content if name in wanted or "val" in name)


def _heat_scaler() -> None:
    from vit21k.optim import optimizers  # noqa: PLC0415

    optimizers._FIRST_SCALE, optimizers._STEPS_TO_GROWTH = 2.0**20, 3  # noqa: SLF001


def _note_batches(path: Path) -> None:
    """Let this process write down a digest of every batch that it trains on."""
    import torch  # noqa: PLC0415
    import xxhash  # noqa: PLC0415

    from vit21k.data.loader import Batch, TrainLoader  # noqa: PLC0415

    plain, rank = TrainLoader.micro_batches, int(os.environ.get("RANK", "0"))

    def noted(self: TrainLoader, step: int) -> Iterator[Batch]:
        for number, batch in enumerate(plain(self, step)):
            digest = xxhash.xxh3_64()
            for part in batch:
                if isinstance(part, torch.Tensor):
                    digest.update(part.numpy().tobytes())
            images = list(zip(batch.positions_B.tolist(), batch.rows_B.tolist(), strict=True))
            line = json.dumps([step, rank, number, digest.hexdigest(), images])
            with path.open("a") as file:
                file.write(line + "\n")
            yield batch

    TrainLoader.micro_batches = noted  # type: ignore[method-assign]


def _fork(run: Any, log: Path) -> int:
    """Run in a child, which writes what it says to *log*; return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = run()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else bool(stop.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for_step(run_dir: Path, step: int, *, seconds: float = 60) -> None:
    """Wait until the log of a run has come to *step*.

    Raises:
        TimeoutError: It never came.
    """
    log = run_dir / "metrics.jsonl"
    for _ in range(round(seconds / 0.005)):  # not by the clock: this process may be stopped
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.005)
    raise TimeoutError(f"step {step} never came: {_log_of(run_dir).read_text()}")
