"""Logits and sparse labels -> loss, prec@1 and top-5 over exactly every image.

Dimensions: B images, K classes, L labels in the batch, T top classes.
"""

import torch
from torch import Tensor

_TOP = 5
_LOSS_SUM, _TOP1_HITS, _TOP5_HITS, _NUM_IMAGES = range(4)


class ClassificationMetrics:
    """Sums over the images seen so far.  They live where the logits do: no update waits for it."""

    def __init__(self) -> None:
        self._totals = torch.zeros(4, dtype=torch.float64)

    @property
    def num_images(self) -> int:
        """How many images were added."""
        return int(self._totals[_NUM_IMAGES])

    def update(
        self,
        logits_BK: Tensor,
        label_rows_L: Tensor,
        label_ids_L: Tensor,
        loss_sum: Tensor | float,
    ) -> None:
        """Add a batch.

        Args:
            logits_BK: Scores; only their order within an image counts.
            label_rows_L: Which image of the batch each label belongs to.
            label_ids_L: Class index of each label.  An image without labels is never right.
            loss_sum: Loss, summed over the images of the batch.
        """
        top_ids_BT = logits_BK.topk(min(_TOP, logits_BK.shape[1]), dim=1).indices
        is_hit_LT = top_ids_BT[label_rows_L] == label_ids_L[:, None]
        hits_BT = torch.zeros_like(top_ids_BT).index_add_(0, label_rows_L, is_hit_LT.long())
        batch = self._totals.to(logits_BK.device)
        batch[_LOSS_SUM] += loss_sum
        batch[_TOP1_HITS] += (hits_BT[:, 0] > 0).sum()
        batch[_TOP5_HITS] += (hits_BT > 0).any(dim=1).sum()
        batch[_NUM_IMAGES] += len(logits_BK)
        self._totals = batch

    def compute(self) -> dict[str, float | int]:
        """Return "loss", "prec@1", "top5" (fractions, 0 to 1) and "num_images".

        "prec@1" is big_vision's: the top class is one of the labels.  "top5": any of the top five
        is.  With fewer than five classes all of them are the top five.

        Raises:
            ValueError: No image was added.
        """
        loss_sum, top1_hits, top5_hits, num_images = self._totals.tolist()
        if not num_images:
            raise ValueError("metrics of no images")
        return {
            "loss": loss_sum / num_images,
            "prec@1": top1_hits / num_images,
            "top5": top5_hits / num_images,
            "num_images": int(num_images),
        }

    def totals(self) -> Tensor:
        """Return a copy of the sums, float64 (4,): to be added up over ranks."""
        return self._totals.clone()

    def set_totals(self, totals: Tensor) -> None:
        """Replace the sums by *totals*, such as the sum of all ranks' `totals()`."""
        self._totals = totals.to(torch.float64).clone()
