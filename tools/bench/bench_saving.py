"""How long a checkpoint holds up a training step, and how long it is written behind its back.

A model with AdamW's moments and an average of its weights is saved; the same tensors are also
only copied, and a thread notes how long it is ever kept from running while the file is written.

    python tools/bench/bench_saving.py [--model vit_base_patch16_224] [--rounds 3]
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import torch

from vit21k.checkpoint.store import BackgroundWriter
from vit21k.distributed import World
from vit21k.models.registry import get_model
from vit21k.optim.optimizers import LossScaler
from vit21k.optim.schedule import Ema
from vit21k.training.checkpoints import Saver
from vit21k.training.context import Progress, TrainState


def state_of(name: str) -> TrainState:
    """Return a model that has been updated once, with moments and an average."""
    model = get_model(name)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.zero_grad()
    return TrainState(
        model=model, optimizers=[optimizer], ema=Ema(model, decay=0.999), scaler=LossScaler()
    )


def longest_wait(stop: threading.Event, waits: list[float]) -> None:
    """Note how long this thread waits beyond the millisecond that it asks for."""
    while not stop.is_set():
        began = time.perf_counter()
        time.sleep(0.001)
        waits.append(time.perf_counter() - began - 0.001)


def measure(state: TrainState, folder: Path, step: int) -> str:
    """Save once; return the figures as a row of Markdown."""
    model, optimizer = state.model, state.optimizers[0]
    states = [value for slots in optimizer.state.values() for value in slots.values()]
    assert state.ema is not None  # noqa: S101
    tensors = [*model.state_dict().values(), *state.ema.tensors().values(), *states]
    began = time.perf_counter()
    copies = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    copy_seconds = time.perf_counter() - began
    num_bytes = sum(copy.nbytes for copy in copies)
    del copies

    stop, waits = threading.Event(), [0.0]
    ticking = threading.Thread(target=longest_wait, args=(stop, waits))
    with BackgroundWriter() as writer:
        saver = Saver(
            run_dir=folder,
            state=state,
            identity={},
            model_config={},
            total_steps=0,
            keep_last=1,
            world=World(),
            writer=writer,
        )
        began = time.perf_counter()
        saver.save(Progress(step=step), ())
        held_seconds = time.perf_counter() - began
        ticking.start()
        writer.wait()
        total_seconds = time.perf_counter() - began
    stop.set()
    ticking.join()
    return (
        f"| {num_bytes / 1e9:.2f} GB | {copy_seconds:.2f} s | {held_seconds:.2f} s | "
        f"{total_seconds:.2f} s | {1000 * max(waits):.1f} ms |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    state = state_of(args.model)
    print(
        "| state | a copy alone | the step waits | until it is on disk | longest wait meanwhile |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for step in range(1, args.rounds + 1):
            print(measure(state, Path(folder), step), flush=True)


if __name__ == "__main__":
    main()
