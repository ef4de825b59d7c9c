"""A loss that is no number names the images it was computed from."""

import pytest
import torch

from vit21k.data.loader import Batch
from vit21k.errors import NonFiniteLossError
from vit21k.training.log import StepLosses

NONE = torch.empty(0, dtype=torch.int64)


class Cats:
    """Images of one folder."""

    def path(self, row):
        return f"cat/{row}.jpg"


def batch(*rows):
    rows_B = torch.tensor(rows)
    images = torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8)
    return Batch(images, NONE, NONE, rows_B, rows_B)


def diverge(tmp_path, losses):
    """Make a step whose micro-batches, of rows 0 1, 2 3, ..., have these *losses*."""
    noted = StepLosses(Cats(), tmp_path, rank=1)
    noted.start_step(7)
    for index, loss in enumerate(losses):
        noted.note(batch(2 * index, 2 * index + 1), torch.tensor(loss))
    with pytest.raises(NonFiniteLossError) as failure, noted.explaining():
        raise NonFiniteLossError("the loss is nan at step 8", hint="lower the learning rate")
    return failure.value


def test_only_the_images_of_the_micro_batch_that_was_bad_are_listed(tmp_path):
    error = diverge(tmp_path, [1.0, float("inf"), 2.0])

    listed = tmp_path / "non-finite-step-8-rank-1.txt"
    assert listed.read_text() == "cat/2.jpg\ncat/3.jpg\n"
    assert "the loss is nan at step 8" in error.message
    assert "1 of this process's 3 micro-batches" in error.message
    assert f"`{listed}`: `cat/2.jpg`, `cat/3.jpg`" in error.message
    assert error.hint.startswith("look at grad_norm")
    assert error.hint.endswith("; lower the learning rate")
    assert "rather the weights" not in error.hint


def test_if_all_are_bad_it_is_rather_the_weights(tmp_path):
    error = diverge(tmp_path, [float("nan")] * 3)

    assert "their 6 images" in error.message
    assert "`cat/2.jpg` and 3 more" in error.message
    assert "rather the weights" in error.hint


def test_a_process_whose_losses_were_good_lists_nothing(tmp_path):
    error = diverge(tmp_path, [1.0])

    assert error.message == "the loss is nan at step 8"
    assert list(tmp_path.iterdir()) == []


def test_a_step_begins_without_the_images_of_the_one_before(tmp_path):
    noted = StepLosses(Cats(), tmp_path)
    noted.note(batch(1), torch.tensor(float("nan")))
    noted.start_step(1)

    with pytest.raises(NonFiniteLossError), noted.explaining():
        raise NonFiniteLossError("elsewhere")

    assert list(tmp_path.iterdir()) == []
