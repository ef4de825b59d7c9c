"""Logits -> probabilities, one way for every command.

Dimensions: B images, K classes.
"""

from typing import Literal

from torch import Tensor

Activation = Literal["sigmoid", "softmax"]


def probabilities(logits_BK: Tensor, activation: Activation) -> Tensor:
    """Return the probabilities that *logits_BK* mean, float32: sigmoid or softmax."""
    logits_BK = logits_BK.float()
    return logits_BK.sigmoid() if activation == "sigmoid" else logits_BK.softmax(dim=1)
