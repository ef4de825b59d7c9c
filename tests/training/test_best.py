"""Which checkpoint is best: by which metric, in which direction, of which weights."""

from functools import partial

import pytest

from vit21k.training.checkpoints import note_best


@pytest.mark.parametrize(("metric", "values"), [("prec@1", [0.1, 0.3, 0.2]), ("loss", [3, 1, 2])])
def test_each_metric_has_its_direction(metric, values):
    best = {}
    note = partial(note_best, metric=metric, val_name="val")

    noted = [note(best, {f"val/{metric}": value}) for value in values]

    assert noted == [["best"], ["best"], []]
    assert best == {"best": values[1]}


def test_the_average_has_a_best_of_its_own():
    best = {}
    note = partial(note_best, metric="loss", val_name="dummy_val")

    note(best, {"dummy_val/loss": 2.0, "dummy_val_ema/loss": 3.0})
    noted = note(best, {"dummy_val/loss": 2.0, "dummy_val_ema/loss": 1.0})

    assert noted == ["best-ema"]
    assert best == {"best": 2.0, "best-ema": 1.0}


def test_a_value_that_is_no_number_is_never_the_best():
    best = {}
    metrics = {"val/loss": float("nan")}

    assert note_best(best, metrics, metric="loss", val_name="val") == []
    assert best == {}


def test_without_a_metric_nothing_is_the_best():
    metrics = {"val/loss": 1.0, "val/None": 1.0}

    assert note_best({}, metrics, metric=None, val_name="val") == []
