"""How often a model is right about the level it is asked about: MIIL's semantic top-1.

Source: Alibaba-MIIL/ImageNet21K, src_files/semantic/metrics.py.
"""

import torch
from torch import Tensor

from vit21k.data.batch_decoder import Batch
from vit21k.distributed import World
from vit21k.losses.hierarchical import Levels, semantic_hits


class SemanticAccuracy:
    """Share of right answers over all pictures and the levels that their labels reach.

    Attributes:
        name: Of the metric.
    """

    name = "semantic_prec@1"

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._totals = torch.zeros(2, dtype=torch.float64)

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch, whose labels are on the device of *logits_BK*."""
        hits = semantic_hits(logits_BK, batch.label_rows_L, batch.label_ids_L, self._levels)
        self._totals += torch.stack(hits).cpu()

    def reduce(self, world: World) -> None:
        """Replace what was added by the sum of all processes; all of them call it."""
        self._totals = world.all_reduce_sum(self._totals)

    def value(self) -> float:
        """Return the share; 0 if no picture has a label."""
        right, of = self._totals.tolist()
        return right / of if of else 0.0
