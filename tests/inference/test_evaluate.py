import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vit21k.data.loader import Batch
from vit21k.data.transforms import normalise
from vit21k.distributed import World
from vit21k.errors import ImageError
from vit21k.inference.evaluate import evaluate

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


class Linear(torch.nn.Module):
    """A model of flat pixels; counts how often it is called, and in which mode."""

    def __init__(self, num_classes=7):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(3 * 4 * 4, num_classes)
        self.modes = []

    def forward(self, images):
        self.modes.append(self.training)
        return self.head(images.flatten(1))


def split(num_images=11, num_classes=7, seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (num_images, 3, 4, 4), dtype=np.uint8))
    labels = [
        sorted(rng.choice(num_classes, rng.integers(1, 4), replace=False).tolist())
        for _ in range(num_images)
    ]
    return images, labels


def batches(images, labels, size):
    for start in range(0, len(images), size):
        part = labels[start : start + size]
        yield Batch(
            images_BCHW=images[start : start + size],
            label_rows_L=torch.tensor([row for row, ids in enumerate(part) for _ in ids]),
            label_ids_L=torch.tensor([label for ids in part for label in ids]),
            rows_B=torch.arange(start, start + len(part)),
        )


def in_float(images):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (images.double() / 255 - mean) / std


def test_normalising_is_the_textbook_formula():
    images, _ = split()

    found = normalise(images, MEAN, STD)

    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), in_float(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 11, 20])
def test_metrics_are_those_of_the_whole_split_whatever_the_batch(size):
    images, labels = split()
    model = Linear()

    metrics = evaluate(
        model, batches(images, labels, size), loss_kind="sigmoid", mean=MEAN, std=STD
    )

    logits = model(in_float(images).float()).double()
    dense = torch.zeros_like(logits)
    for row, ids in enumerate(labels):
        dense[row, ids] = 1
    order = logits.argsort(dim=1, descending=True)
    top1 = [order[row, 0].item() in ids for row, ids in enumerate(labels)]
    top5 = [bool({*order[row, :5].tolist()} & {*ids}) for row, ids in enumerate(labels)]
    loss = F.binary_cross_entropy_with_logits(logits, dense, reduction="sum") / len(images)
    assert metrics == {
        "loss": pytest.approx(loss.item(), rel=1e-6),
        "prec@1": pytest.approx(np.mean(top1)),
        "top5": pytest.approx(np.mean(top5)),
        "num_images": 11,
    }


def test_softmax_loss_is_cross_entropy_for_one_label():
    images, _ = split()
    labels = [[row % 7] for row in range(len(images))]
    model = Linear()

    metrics = evaluate(
        model,
        batches(images, labels, 4),
        loss_kind="softmax",
        smoothing=0.1,
        mean=MEAN,
        std=STD,
    )

    wanted = F.cross_entropy(
        model(in_float(images).float()),
        torch.tensor(labels).flatten(),
        label_smoothing=0.1,
    )
    assert metrics["loss"] == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_evaluated_in_eval_mode_and_left_as_it_came(mode):
    model = Linear().train(mode)

    evaluate(model, batches(*split(), 4), loss_kind="sigmoid", mean=MEAN, std=STD)

    assert model.modes == [False] * 3
    assert model.training is mode
    assert model.head.weight.grad is None


def test_the_mode_is_put_back_after_an_error():
    model = Linear().train()

    def broken():
        raise OSError("gone")
        yield

    with pytest.raises(OSError, match="gone"):
        evaluate(model, broken(), loss_kind="sigmoid", mean=MEAN, std=STD)

    assert model.training


class Pair(World):
    """Adds what the other process had."""

    def __new__(cls, other):
        return super().__new__(cls)

    def __init__(self, other):
        object.__setattr__(self, "other", other)

    def all_reduce_sum(self, tensor):
        return tensor + self.other


def test_shares_of_uneven_size_add_up_to_the_whole():
    images, labels = split()
    model = Linear()
    kwargs = {"loss_kind": "sigmoid", "mean": MEAN, "std": STD}
    whole = evaluate(model, batches(images, labels, 4), **kwargs)
    totals = []

    class Spy(Pair):
        def all_reduce_sum(self, tensor):
            totals.append(tensor)
            return tensor

    evaluate(model, batches(images[8:], labels[8:], 4), **kwargs, world=Spy(None))
    both = evaluate(model, batches(images[:8], labels[:8], 4), **kwargs, world=Pair(totals[0]))

    assert both == pytest.approx(whole, rel=1e-6)


def test_a_process_without_images_takes_part():
    model = Linear()
    other = torch.tensor([10.0, 2, 3, 4], dtype=torch.float64)

    metrics = evaluate(model, iter(()), loss_kind="sigmoid", mean=MEAN, std=STD, world=Pair(other))

    assert metrics == {"loss": 2.5, "prec@1": 0.5, "top5": 0.75, "num_images": 4}


def test_no_images_have_no_metrics():
    with pytest.raises(ImageError, match="no image"):
        evaluate(Linear(), iter(()), loss_kind="sigmoid", mean=MEAN, std=STD)
