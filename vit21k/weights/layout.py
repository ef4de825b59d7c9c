"""What a converter hands back: tensors under our names, and what their layout says of the model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Converted(NamedTuple):
    """Weights of another program under our names."""

    tensors: dict[str, Tensor]
    """By our names, in torch's layout."""
    known: Mapping[str, Any]
    """Arguments that the arrays do not show, but their layout or a file beside them does."""
    dropped: tuple[str, ...] = ()
    """Tensors that belong to no model of ours, by their own names."""
    customary: Mapping[str, Any] = {}
    """What its library's constructors take for arguments that nothing says, if not timm's."""
    unknown: str | None = None
    """The architecture that a file beside the weights names, if it is not one of ours."""
