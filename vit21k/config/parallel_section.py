"""The recipe fields of how processes share the work.  They change results by rounding only."""

from typing import Literal

from vit21k.config.fields import Section


class ParallelSection(Section):
    """What each of several processes holds."""

    kind: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: all weights; `fsdp`: a part of weights, gradients and moments (FSDP2)."""
