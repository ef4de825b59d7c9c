"""Which checkpoint is the best so far, by one metric on the split that is evaluated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vit21k.checkpoint.run_folder import BEST, BEST_EMA

_LESS_IS_BETTER = ("loss",)


@dataclass(frozen=True)
class BestWatch:
    """Watches a metric of the weights, and of their average.

    Attributes:
        metric: Its name without the split: "prec@1", "top5", "loss"; None: nothing is watched.
        val_name: Of the split, as in `SplitData`.
    """

    metric: str | None
    val_name: str

    def note(self, best: dict[str, float], metrics: Mapping[str, float]) -> list[str]:
        """Put what is better than ever into *best*; return the names of those checkpoints.

        Args:
            best: The best values so far, by name of the checkpoint; changed in place.
            metrics: Of an evaluation, by full name.
        """
        improved: list[str] = []
        if self.metric is None:
            return improved
        for pointer, split in ((BEST, self.val_name), (BEST_EMA, f"{self.val_name}_ema")):
            value = metrics.get(f"{split}/{self.metric}")
            if (
                value is not None
                and math.isfinite(value)
                and self._is_better(value, best.get(pointer))
            ):
                best[pointer] = value
                improved.append(pointer)
        return improved

    def _is_better(self, value: float, best: float | None) -> bool:
        if best is None:
            return True
        return value < best if self.metric in _LESS_IS_BETTER else value > best
