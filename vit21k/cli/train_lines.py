"""What `train` says on the terminal while it runs."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vit21k.cli import console

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitReport
    from vit21k.training.forecast import Forecast
    from vit21k.training.setup import Listener

_LONG_RUN_SECONDS = 14 * 86_400
_MICRO_STEP_SECONDS = 10.0
_UNTOLD = ("step", "total_steps", "seconds", "eta_seconds")


def listener() -> "Listener":
    """Return who hears of a run: the terminal."""
    from vit21k.training.setup import Listener

    return Listener(
        note=console.note,
        warn=console.warn,
        forecast=_tell_forecast,
        initialised=_tell_initialised,
        line=_tell_line,
        micro_step=_MicroSteps(),
    )


def _tell_forecast(forecast: "Forecast") -> None:
    console.done(
        f"{forecast.num_params / 1e6:,.2f} M parameters, {forecast.num_images:,} images to go, "
        f"{_engineering(forecast.flops)}FLOP; "
        f"{_rate(forecast.images_per_second)} measured here, about "
        f"{console.duration(forecast.seconds)} without reading images"
    )
    if forecast.seconds > _LONG_RUN_SECONDS:
        console.warn(
            f"this run would take about {console.duration(forecast.seconds)} on this machine; it "
            "goes on, and can be stopped and resumed at any time"
        )


def _tell_initialised(report: "InitReport") -> None:
    console.note(f"init: {report.in_words()}")


class _MicroSteps:
    """Shows that a long step moves: a line every 10 s, unless steps are shorter than that."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()
        self._step = -1

    def __call__(self, step: int, num_done: int, num_images: int) -> None:
        now = time.monotonic()
        if step != self._step:
            self._step, self._told_at = step, now
        elif now - self._told_at >= _MICRO_STEP_SECONDS:
            self._told_at = now
            console.note(f"step {step + 1:,}: {num_done:,} of {num_images:,} images")


def _tell_line(line: Mapping[str, Any]) -> None:
    head = f"step {line['step']:,}/{line['total_steps']:,}"
    if "lr" not in line:
        names = [name for name in line if name not in _UNTOLD]
        console.done(" | ".join([head, *(f"{name} {_number(line[name])}" for name in names)]))
        return
    skipped = f" | {line['num_skipped']:,} skipped" if line["num_skipped"] else ""
    skipped += f" | {line['num_replaced']:,} replaced" if line["num_replaced"] else ""
    console.done(
        f"{head} | loss {line['loss']:.4f} | lr {line['lr']:.2e} | "
        f"grad norm {line['grad_norm']:.3g} | weights {line['weight_norm']:.4g} | "
        f"{_rate(line['images_per_second'])} | MFU {line['mfu']:.1%} | "
        f"waits {line['data_wait']:.0%} | {_engineering(line['memory_bytes'])}B | "
        f"ETA {console.duration(line['eta_seconds'])}{skipped}"
    )


def _rate(images_per_second: float) -> str:
    digits = 0 if images_per_second >= 100 else 2
    return f"{images_per_second:,.{digits}f} images/s"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _engineering(value: float) -> str:
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:,.1f} {prefix}"
    return f"{value:,.0f} "
