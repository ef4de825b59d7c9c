"""What watches a run: its log with all that is measured for it, and the losses of the step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vit21k import __version__
from vit21k.device import device_name
from vit21k.history.facts import write_facts
from vit21k.models.cost import num_params, train_flops_per_image
from vit21k.models.precision import DTYPES
from vit21k.sinks.sink import DetachedSink, LoggedRun, open_sinks
from vit21k.training.loop import Plan, Progress
from vit21k.training.meters import PEAK_SIDES, Meters, measure_peak_flops
from vit21k.training.non_finite import LossWatch
from vit21k.training.run_log import RunLog
from vit21k.training.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Watching:
    """The watchers of a run.

    Attributes:
        log: Hears of every step and evaluation.
        meters: Measures for the log.
        losses: Knows the micro-batches of the step that is being made.
    """

    log: RunLog
    meters: Meters
    losses: LossWatch


@contextmanager
def watching(
    setup: Setup,
    plan: Plan,
    progress: Progress,
    model: nn.Module,
    origin: Mapping[str, Any] | None,
) -> Iterator[Watching]:
    """Watch a run while the block lasts: write ``run.json``, open the log, explain bad losses."""
    is_first = setup.world.rank == 0
    flops_per_image = float(train_flops_per_image(setup.args))
    peak_flops = _peak_flops(setup) * setup.world.world_size
    if is_first:
        write_facts(
            setup.place.run_dir,
            {
                "recipe": setup.place.recipe_name,
                "total_steps": plan.total_steps,
                "global_batch_size": plan.global_batch_size,
                "num_train_images": len(setup.data.train),
                "num_params": num_params(setup.args),
                "flops_per_image": flops_per_image,
                "peak_flops": peak_flops,
                "device": device_name(setup.device),
                "world_size": setup.world.world_size,
                "origin": origin,
                "vit21k": __version__,
                "torch": torch.__version__,
            },
        )
    meters = Meters(
        model=model,
        device=setup.device,
        flops_per_image=flops_per_image,
        peak_flops=peak_flops,
    )
    log = RunLog(
        setup.place.run_dir,
        progress=progress,
        total_steps=plan.total_steps,
        every_steps=plan.log_every_steps,
        peak_lr=setup.recipe.optim.lr,
        tell=setup.listener.line if is_first else None,
        meters=meters,
        sinks=_sinks(setup, progress) if is_first else (),
    )
    losses = LossWatch(setup.data.train.path, setup.place.run_dir, setup.world.rank)
    try:
        with losses.explaining():
            yield Watching(log=log, meters=meters, losses=losses)
    finally:
        log.close()


def _sinks(setup: Setup, progress: Progress) -> list[DetachedSink]:
    run = LoggedRun(
        run_dir=setup.place.run_dir,
        recipe=setup.recipe.model_dump(mode="json"),
        resumed_step=progress.step,
        warn=setup.listener.warn,
    )
    return open_sinks(setup.place.log_to, run)


def _peak_flops(setup: Setup) -> float:
    """Return what MFU is a share of, for one device, and say where it is from."""
    if setup.place.peak_flops is not None:
        return setup.place.peak_flops
    precision, device = setup.recipe.products_in, setup.device
    peak = measure_peak_flops(device, DTYPES[precision])
    side = PEAK_SIDES.get(device.type, PEAK_SIDES["cuda"])
    setup.listener.note(
        f"MFU is against {peak / 1e12:.3g} TFLOP/s, what a {precision} product of two {side} x "
        f"{side} matrices reaches here"
    )
    return peak
