"""The recipe fields of what is done beside training."""

from typing import Literal

from vit21k.config.fields import NonNegativeInt, PositiveInt, Section


class RunSection(Section):
    """How often the rest is done.  0: after the last step only."""

    log_every_steps: NonNegativeInt = 10
    """Optimizer steps between two lines of the log."""
    eval_every_steps: NonNegativeInt = 0
    """Optimizer steps between two evaluations."""
    save_every_steps: NonNegativeInt = 1000
    """Optimizer steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """How many checkpoints are kept, beside the best ones; two at least before the last step."""
    best_metric: Literal["prec@1", "top5", "loss"] | None = None
    """Keep the best checkpoint by this metric, and the best average (EMA); null: neither."""
