"""The learning rate, and when periodic things happen."""

import math
from typing import Literal

Decay = Literal["linear", "cosine"]


def lr_factor(
    step: int, *, warmup_steps: int, total_steps: int, decay: Decay, end_factor: float = 0.0
) -> float:
    """Return the factor on the peak learning rate for the update after *step* updates.

    After the warm-up, from 1 down to *end_factor* along a line or half a cosine; during it, the
    same times ``step / warmup_steps``, so the first update of a run with warm-up changes nothing.

    Args:
        step: Updates made so far: 0 for the first one, ``total_steps - 1`` for the last.
        warmup_steps: May be 0; less than *total_steps*.
        total_steps: Updates in the whole run.
        decay: Shape of the way down.
        end_factor: Where it would be at *total_steps*.

    Source: PLSC, plsc/scheduler/lr_scheduler.py, `ViTLRScheduler`; the same as
        google-research/vision_transformer, vit_jax/utils.py.
    """
    done = min(max((step - warmup_steps) / (total_steps - warmup_steps), 0.0), 1.0)
    left = 1 - done if decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    factor = end_factor + (1 - end_factor) * left
    return factor * min(1.0, step / warmup_steps) if warmup_steps else factor


def is_due(step: int, *, every_steps: int, total_steps: int) -> bool:
    """Return whether something done *every_steps* is due after *step* updates.

    Always true at the last step, so that no run ends without its final evaluation and checkpoint.
    *every_steps* = 0 means at the last step only.
    """
    return step == total_steps or (every_steps > 0 and step % every_steps == 0)
