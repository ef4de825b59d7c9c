"""Loss scaling: float16 has no values under 6e-8, so small gradients are made larger on the way.

The rules are those of `torch.amp.GradScaler`.  What differs is who decides: there each optimizer
looks at its own gradients, and each process at its own shards; here the norm of the whole gradient,
which the loop has anyway and which is the same on every process, decides once for all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vit21k.errors import NonFiniteLossError
from vit21k.models.precision import Precision

_FIRST_SCALE = 2.0**16
_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_TO_GROWTH = 2000
# Without any scaling left, an overflow is no matter of float16 any more.
_LEAST_SCALE = 2.0**-14
_LARGEST_SCALE = 2.0**126


@dataclass
class LossScaler:
    """The factor on the loss, and whether an update is made.

    Attributes:
        scale: The factor; a power of two, so that scaling changes no rounding.
        good_steps: Updates since it was last changed.
        is_fixed: There is no scaling: a gradient that is not finite ends the run.
    """

    scale: float = 1.0
    good_steps: int = 0
    is_fixed: bool = True

    def accepts(self, grad_norm: float, *, step: int) -> bool:
        """Return whether to update with a gradient of this norm, and adapt the scale.

        Args:
            grad_norm: Of the gradient after the scale was taken out of it.
            step: Number of the update, from 1, for the message.

        Raises:
            NonFiniteLossError: The gradient is not finite, and scaling is not the reason.
        """
        is_finite = math.isfinite(grad_norm)
        if self.is_fixed:
            if not is_finite:
                raise NonFiniteLossError(
                    f"the norm of the gradient is {grad_norm} at step {step}",
                    hint="lower the learning rate, lengthen the warm-up, or clip the gradient",
                )
            return True
        if is_finite:
            self._grow()
        else:
            self._back_off(step)
        return is_finite

    def state(self) -> dict[str, float]:
        """Return what a resume needs, as JSON values."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Put back what `state` returned."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])

    def _grow(self) -> None:
        self.good_steps += 1
        if self.good_steps == _STEPS_TO_GROWTH:
            self.scale, self.good_steps = min(self.scale * _GROWTH, _LARGEST_SCALE), 0

    def _back_off(self, step: int) -> None:
        self.scale, self.good_steps = self.scale * _BACKOFF, 0
        if self.scale < _LEAST_SCALE:
            raise NonFiniteLossError(
                f"the gradient is not finite at step {step}, however little the loss is scaled",
                hint="lower the learning rate, or use precision bf16 or fp32",
            )


def loss_scaler_of(precision: Precision) -> LossScaler:
    """Return the scaler that a precision needs: one that does nothing, but for "fp16"."""
    if precision != "fp16":
        return LossScaler()
    return LossScaler(scale=_FIRST_SCALE, is_fixed=False)
