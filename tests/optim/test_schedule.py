"""The learning rate of PLSC and Google, and when periodic things happen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit21k.optim.schedule import LrSchedule, is_due


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


def lrs_of(schedule, base, num_steps):
    return [base * schedule(step) for step in range(num_steps)]


def test_set_after_each_epoch_as_in_deits_loop_the_first_two_epochs_share_a_value():
    timm_scheduler = pytest.importorskip("timm.scheduler")
    torch = pytest.importorskip("torch")
    base, steps_per_epoch, epochs = 5e-4, 3, 30
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=base)
    oracle = timm_scheduler.CosineLRScheduler(
        sgd, t_initial=epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    expected = []
    for epoch in range(epochs):
        expected += [sgd.param_groups[0]["lr"]] * steps_per_epoch
        oracle.step(epoch)

    schedule = LrSchedule(
        total_steps=epochs * steps_per_epoch,
        warmup_steps=5 * steps_per_epoch,
        start_factor=1e-6 / base,
        end_factor=1e-5 / base,
        from_start=True,
        changes="every_epoch",
        steps_per_epoch=steps_per_epoch,
        first_epoch=-1,
    )

    assert lrs_of(schedule, base, len(expected)) == pytest.approx(expected, rel=1e-9)


def test_set_once_an_epoch_it_is_timms_cosine():
    """DeiT: 5 epochs of warm-up from 1e-6, a cosine that is counted from epoch 0, to 1e-5."""
    timm_scheduler = pytest.importorskip("timm.scheduler")
    torch = pytest.importorskip("torch")
    base, steps_per_epoch, epochs = 5e-4, 3, 30
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=base)
    oracle = timm_scheduler.CosineLRScheduler(
        sgd, t_initial=epochs, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6
    )
    expected = []
    for epoch in range(epochs):
        oracle.step(epoch)
        expected += [sgd.param_groups[0]["lr"]] * steps_per_epoch

    schedule = LrSchedule(
        total_steps=epochs * steps_per_epoch,
        warmup_steps=5 * steps_per_epoch,
        start_factor=1e-6 / base,
        end_factor=1e-5 / base,
        from_start=True,
        changes="every_epoch",
        steps_per_epoch=steps_per_epoch,
    )

    assert lrs_of(schedule, base, len(expected)) == pytest.approx(expected)


def test_paddle_pits_learning_rates_are_those_of_its_log():
    """20 epochs up from 5e-7, a cosine over 300 counted from 0, ten more at 5e-6; from epoch 1."""
    base, steps_per_epoch = 1e-3, 1251
    schedule = LrSchedule(
        total_steps=310 * steps_per_epoch,
        warmup_steps=20 * steps_per_epoch,
        start_factor=5e-7 / base,
        end_factor=5e-6 / base,
        decay_end=300 * steps_per_epoch,
        from_start=True,
        changes="every_epoch",
        steps_per_epoch=steps_per_epoch,
        first_epoch=1,
    )

    logged = {1: 5.05e-5, 20: 9.891e-4, 75: 8.54e-4, 143: 5.39e-4, 226: 1.47e-4, 305: 5e-6}
    for epoch, lr in logged.items():
        for step in ((epoch - 1) * steps_per_epoch, epoch * steps_per_epoch - 1):
            assert base * schedule(step) == pytest.approx(lr, rel=2e-3)


def test_mindcvs_warm_up_starts_at_a_hundredth_and_its_cosine_after_it():
    """scheduler_factory.py: lr wf + (i/S)/E_w (lr - lr wf); eta + (lr - eta)(1 + cos)/2."""
    base, eta, steps_per_epoch, warmup, decay = 1.6e-3, 1e-6, 4, 3, 27
    expected = []
    for i in range((warmup + decay) * steps_per_epoch):
        epoch = i / steps_per_epoch
        if epoch < warmup:
            expected.append(base * 0.01 + epoch / warmup * (base - base * 0.01))
        else:
            cosine = 1 + math.cos(math.pi * (epoch - warmup) / decay)
            expected.append(eta + 0.5 * (base - eta) * cosine)

    schedule = LrSchedule(
        total_steps=len(expected), warmup_steps=12, start_factor=0.01, end_factor=eta / base
    )

    assert lrs_of(schedule, base, len(expected)) == pytest.approx(expected)


def test_a_warm_up_by_the_step_and_a_cosine_by_the_epoch_are_torchs_two_schedulers():
    """MMPretrain's 64xb64: LinearLR by iteration, CosineAnnealingLR by epoch."""
    torch = pytest.importorskip("torch")
    base, steps_per_epoch, warmup_epochs, epochs = 3e-3, 5, 2, 10
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=base)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=epochs - warmup_epochs)
    expected = [base * (1e-4 + (1 - 1e-4) * step / 10) for step in range(10)]
    for _ in range(epochs - warmup_epochs):
        expected += [sgd.param_groups[0]["lr"]] * steps_per_epoch
        sgd.step()
        cosine.step()

    schedule = LrSchedule(
        total_steps=epochs * steps_per_epoch,
        warmup_steps=warmup_epochs * steps_per_epoch,
        start_factor=1e-4,
        changes="every_epoch_after_warmup",
        steps_per_epoch=steps_per_epoch,
    )

    assert lrs_of(schedule, base, len(expected)) == pytest.approx(expected)


def test_drops_are_torchs_multi_step():
    torch = pytest.importorskip("torch")
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    oracle = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones=[6, 16], gamma=0.1)
    expected = []
    for _ in range(20):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        oracle.step()

    schedule = LrSchedule(total_steps=20, decay="step", drops=(6, 16))

    assert lrs_of(schedule, 0.1, 20) == pytest.approx(expected)


def test_both_ways_as_a_cosine_it_is_torchs_one_cycle_within_a_step():
    """ImageNet-21K-P: up over a tenth from a 20th of the peak, down to a 10,000th of that."""
    torch = pytest.importorskip("torch")
    total = 1000
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=1.0, total_steps=total, pct_start=0.1, div_factor=20, cycle_momentum=False
    )
    expected = []
    for _ in range(total - 1):
        expected.append(sgd.param_groups[0]["lr"])
        sgd.step()
        oracle.step()

    schedule = LrSchedule(
        total_steps=total,
        warmup_steps=100,
        warmup_shape="cosine",
        start_factor=1 / 20,
        end_factor=1 / 20 / 1e4,
    )

    ours = lrs_of(schedule, 1.0, total - 1)
    # torch's peak and end are one step earlier.
    assert ours == pytest.approx(expected, abs=1e-2)
    assert (max(ours), max(expected)) == (1.0, pytest.approx(1.0))


@given(
    step=st.integers(0, 999),
    warmup=st.integers(0, 300),
    cooldown=st.integers(0, 300),
    decay=st.sampled_from(["linear", "cosine", "rsqrt", "stair"]),
)
def test_it_is_big_visions_formula(step, warmup, cooldown, decay):
    # `create_learning_rate_schedule` in big_vision/utils.py, line by line.
    total, base, timescale, boundaries = 1000, 1e-3, 50, (300, 600)
    progress = min(max((step - warmup) / float(total - warmup), 0.0), 1.0)
    if decay == "linear":
        expected = base * (1.0 - progress)
    elif decay == "cosine":
        expected = base * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif decay == "rsqrt":
        late = warmup <= step
        expected = base / math.sqrt(1 + (step - warmup) / timescale) if late else base
    else:
        expected = base * 0.1 ** sum(boundary < step + 1 for boundary in boundaries)
    if warmup:
        expected *= min(1.0, step / warmup)
    if cooldown:
        expected *= min(1.0, (total - step) / cooldown)

    schedule = LrSchedule(
        total_steps=total,
        warmup_steps=warmup,
        decay="step" if decay == "stair" else decay,
        timescale=timescale,
        drops=boundaries,
        cooldown_steps=cooldown,
    )

    assert base * schedule(step) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("step", "every_steps", "due"), [(3, 3, True), (4, 3, False), (10, 3, True), (5, 0, False)]
)
def test_the_last_step_is_always_due(step, every_steps, due):
    assert is_due(step, every_steps=every_steps, total_steps=10) is due
