"""Dummy batches: sharded, every process makes as many passes as the one with the most images."""

import pytest
import torch

from vit21k.data.loader import Batch
from vit21k.data.sampler import StepSampler
from vit21k.losses.sparse import LOSSES
from vit21k.training.gradients import most_passes, with_dummies


@pytest.mark.parametrize(("world_size", "passes"), [(1, 4), (2, 2), (4, 1)])
def test_as_many_passes_as_the_largest_share_needs(world_size, passes):
    for rank in range(world_size):
        sampler = StepSampler(
            21, global_batch_size=20, seed=0, rank=rank, world_size=world_size, drop_last=False
        )

        assert most_passes(sampler, 5) == passes
        assert all(-(-sampler.num_rows(step) // 5) <= passes for step in range(4))


@pytest.mark.parametrize("num_real", [0, 1, 3])
def test_what_is_added_weighs_nothing_and_has_a_loss(num_real):
    real = Batch(*(torch.zeros(1, dtype=torch.int64) for _ in range(5)))

    batches = list(with_dummies(iter([real] * num_real), 3, 16, step=0))

    assert batches[:num_real] == [real] * num_real
    assert len(batches) == 3
    for dummy in batches[num_real:]:
        assert len(dummy.rows_B) == 0
        for name in ("sigmoid", "softmax"):
            logits = torch.zeros(len(dummy.images_BCHW), 4, requires_grad=True)
            loss = LOSSES[name](logits, dummy.label_rows_L, dummy.label_ids_L)
            (loss * len(dummy.rows_B)).backward()
            assert loss.isfinite()
            assert not logits.grad.any()
