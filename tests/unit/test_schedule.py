"""The learning rate of PLSC and Google, and when periodic things happen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit21k.training.schedule import LrSchedule, is_due


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_it_rises_along_a_line_and_starts_at_zero(decay):
    schedule = LrSchedule(warmup_steps=4, total_steps=1_000_000, decay=decay)

    assert [schedule(step) for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1], abs=1e-4)


def test_the_line_ends_at_its_end_and_the_cosine_is_half_way_in_the_middle():
    line = LrSchedule(total_steps=100, decay="linear", end_factor=0.01)
    cosine = LrSchedule(total_steps=100, decay="cosine")

    assert line(100) == pytest.approx(0.01)
    assert line(50) == pytest.approx(0.505)
    assert cosine(50) == pytest.approx(0.5)
    assert cosine(100) == pytest.approx(0)


@given(
    step=st.integers(0, 2000),
    warmup=st.integers(0, 500),
    decay=st.sampled_from(["linear", "cosine"]),
    end=st.floats(0, 1),
)
def test_it_is_plscs_formula(step, warmup, decay, end):
    # PLSC's words: p is (t - W) / (T - W) within 0 and 1; the line goes to its end by 1 - p, the
    # cosine to zero by half of 1 + cos(pi p); both are multiplied by t / W during the warm-up.
    total, base = 1000, 3e-3
    progress = min(max((step - warmup) / (total - warmup), 0), 1)
    if decay == "linear":
        expected = end * base + (base - end * base) * (1 - progress)
    else:
        end = 0.0
        expected = 0.5 * base * (1 + math.cos(math.pi * progress))
    if warmup:
        expected *= min(1, step / warmup)

    schedule = LrSchedule(warmup_steps=warmup, total_steps=total, decay=decay, end_factor=end)

    assert base * schedule(step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "every_steps", "due"), [(3, 3, True), (4, 3, False), (10, 3, True), (5, 0, False)]
)
def test_the_last_step_is_always_due(step, every_steps, due):
    assert is_due(step, every_steps=every_steps, total_steps=10) is due
