import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.inference.metrics import ClassificationMetrics


def metrics_of(logits, labels, loss_sum=0.0):
    """Metrics of one batch; *labels* is a list of class indices for each image."""
    metrics = ClassificationMetrics()
    metrics.update(logits, *sparse(labels), loss_sum)
    return metrics


def sparse(labels):
    pairs = [(row, label) for row, ids in enumerate(labels) for label in ids]
    return tuple(torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T)


def ranking(*order, num_classes=8):
    """Logits of one image whose best classes are *order*, best first."""
    logits = torch.zeros(num_classes)
    for place, label in enumerate(order):
        logits[label] = 100.0 - place
    return logits


def test_the_top_class_may_be_any_of_the_labels():
    logits = torch.stack([ranking(3, 1, 2, 4, 5)] * 4)

    result = metrics_of(logits, [[3], [0, 3], [5], [6]], loss_sum=10.0).compute()

    assert result == {"loss": 2.5, "prec@1": 0.5, "top5": 0.75, "num_images": 4}


def test_an_image_with_several_labels_among_the_top_five_counts_once():
    result = metrics_of(ranking(3, 1, 2, 4, 5)[None], [[1, 2, 3, 4, 5]]).compute()

    assert (result["prec@1"], result["top5"]) == (1.0, 1.0)


def test_an_image_without_labels_counts_and_is_never_right():
    result = metrics_of(torch.stack([ranking(1), ranking(1)]), [[], [1]]).compute()

    assert result == {"loss": 0.0, "prec@1": 0.5, "top5": 0.5, "num_images": 2}


def test_fewer_than_five_classes_are_all_in_the_top_five():
    result = metrics_of(torch.tensor([[3.0, 2.0, 1.0]]), [[2]]).compute()

    assert (result["prec@1"], result["top5"]) == (0.0, 1.0)


labels_of_an_image = st.lists(st.integers(0, 7), unique=True, max_size=4)


@given(labels=st.lists(labels_of_an_image, min_size=1, max_size=12), seed=st.integers(0, 99))
@settings(max_examples=50)
def test_the_result_is_a_plain_count(labels, seed):
    logits = torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(seed))
    order = logits.argsort(dim=1, descending=True).tolist()
    hits = [[label in ids for label in row] for row, ids in zip(order, labels, strict=True)]

    result = metrics_of(logits, labels).compute()

    assert result["prec@1"] == pytest.approx(sum(row[0] for row in hits) / len(hits))
    assert result["top5"] == pytest.approx(sum(any(row[:5]) for row in hits) / len(hits))


@given(cut=st.integers(0, 10))
@settings(max_examples=11)
def test_batches_and_ranks_add_up(cut):
    logits = torch.randn(10, 8, generator=torch.Generator().manual_seed(3))
    labels = [[index % 8] for index in range(10)]
    losses = torch.rand(10, generator=torch.Generator().manual_seed(4))
    whole = metrics_of(logits, labels, losses.sum())
    parts = [
        metrics_of(logits[part], labels[part], losses[part].sum())
        for part in (slice(cut), slice(cut, None))
    ]

    reduced = ClassificationMetrics()
    reduced.set_totals(parts[0].totals() + parts[1].totals())

    assert reduced.compute() == pytest.approx(whole.compute())


def test_totals_are_a_copy():
    metrics = metrics_of(ranking(1)[None], [[1]])

    metrics.totals().zero_()

    assert metrics.compute()["num_images"] == 1


def test_metrics_of_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        ClassificationMetrics().compute()
