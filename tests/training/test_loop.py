"""The loop on a model of three weights: what it does when, and that a resume changes nothing."""

import copy
import math

import pytest
import torch

from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.errors import NonFiniteLossError
from vit21k.optim.optimizers import LossScaler, OptimPlan, build_optimizers
from vit21k.training.checkpoints import BestWatch
from vit21k.training.loop import Hooks, Plan, Progress, train

BATCH = 8


def plan(**changes):
    fields = {
        "total_steps": 10,
        "global_batch_size": BATCH,
        "seed": 0,
        "lr_factor": lambda step: 1 - step / 10,
        "grad_clip_norm": 1.0,
        "log_every_steps": 4,
        "eval_every_steps": 0,
        "save_every_steps": 5,
    }
    return Plan(**{**fields, **changes})


def micro_batches(step, *, size=BATCH, skip=0):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, generator=generator)[: BATCH - skip]
    for part in images.split(size):
        rows = torch.arange(len(part))
        yield Batch(part, torch.arange(len(part)), torch.zeros(len(part), dtype=torch.int64), rows)


class Noisy(torch.nn.Module):
    """A line through three weights, with dropout, so that the random state matters."""

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 2)
        self.drop = torch.nn.Dropout(0.3)

    def forward(self, images):
        return self.drop(self.line(images))


def fresh(model_class=Noisy):
    torch.manual_seed(0)
    model = model_class()
    return model, build_optimizers(model, OptimPlan(kind="adamw", lr=0.1))


def run(model, optimizers, progress=None, *, the_plan=None, scaler=None, **hooks):
    progress = progress or Progress()
    calls = {
        "micro_batches": micro_batches,
        "loss_of": lambda model, batch: model(batch.images_BCHW).square().mean(),
        "log_step": lambda *_: None,
        "evaluate": lambda _: {"val/loss": 0.0},
        "log_evaluation": lambda *_: None,
        "after_update": lambda _: None,
        "note_best": lambda *_: (),
        "save": lambda *_: None,
        "should_stop": lambda: False,
        **hooks,
    }
    finished = train(
        the_plan or plan(),
        progress,
        model=model,
        optimizers=optimizers,
        hooks=Hooks(**calls),
        world=World(),
        scaler=scaler,
    )
    return finished, progress


def test_a_resumed_run_ends_with_the_same_weights_to_the_bit():
    model, optimizers = fresh()
    saved = {}

    def save(progress, _):
        states = [optimizer.state_dict() for optimizer in optimizers]
        saved[progress.step] = copy.deepcopy((progress, model.state_dict(), states))

    run(model, optimizers, save=save)
    progress, weights, states = saved[5]
    resumed, resumed_optimizers = fresh()
    resumed.load_state_dict(weights)
    for optimizer, state in zip(resumed_optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    torch.manual_seed(12345)
    run(resumed, resumed_optimizers, progress)

    assert torch.equal(resumed.line.weight, model.line.weight)
    assert progress == Progress(step=10, images_seen=80)


def test_what_happens_when():
    saved, evaluated, logged = [], [], []

    finished, _ = run(
        *fresh(),
        save=lambda p, _: saved.append(p.step),
        log_step=lambda p, metrics: logged.append((p.step, sorted(metrics))),
        log_evaluation=lambda p, _: evaluated.append(p.step),
    )

    assert finished
    assert saved == [5, 10]
    assert evaluated == [10]
    assert logged == [
        (step, ["grad_norm", "loss", "loss_scale", "lr_factor"]) for step in range(1, 11)
    ]


def test_small_micro_batches_give_the_gradient_of_the_whole_batch():
    class Plain(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 2)

    whole, optimizers = fresh(Plain)
    run(whole, optimizers)
    parts, optimizers = fresh(Plain)
    run(parts, optimizers, micro_batches=lambda step: micro_batches(step, size=3))

    torch.testing.assert_close(parts.weight, whole.weight)


def test_a_batch_with_fewer_images_than_planned_is_averaged_over_those_it_has():
    losses = []
    expected = next(micro_batches(0, skip=3)).images_BCHW.square().mean().item()

    _, progress = run(
        _Scale(),
        [],
        the_plan=plan(total_steps=1, grad_clip_norm=None),
        micro_batches=lambda step: micro_batches(step, skip=3),
        log_step=lambda _, metrics: losses.append(metrics["loss"]),
    )

    assert losses == [pytest.approx(expected)]
    assert progress.images_seen == BATCH - 3


class _Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.weight * images


def test_a_loss_that_is_not_a_number_ends_the_run_before_it_reaches_the_weights():
    model, optimizers = fresh()
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(NonFiniteLossError, match="nan at step 1"):
        run(model, optimizers, loss_of=lambda m, b: m(b.images_BCHW).mean() * math.nan)

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_signal_ends_the_run_between_two_updates_after_a_save():
    saved, steps = [], iter([False] * 5 + [True] * 5)
    model, optimizers = fresh()

    finished, progress = run(
        model, optimizers, should_stop=lambda: next(steps), save=lambda p, _: saved.append(p.step)
    )

    assert not finished
    assert saved == [progress.step]
    assert progress.step < 10


def test_the_gradient_norm_is_that_before_clipping():
    norms = []

    run(
        *fresh(),
        the_plan=plan(grad_clip_norm=1e-3),
        log_step=lambda _, metrics: norms.append(metrics["grad_norm"]),
    )

    assert max(norms) > 1e-2


def test_an_update_that_float16_overflowed_in_is_left_out_and_counted():
    model, optimizers = fresh()
    scaler = LossScaler(scale=2.0**20, is_fixed=False)
    updates, scales, weights = [], [], []

    def loss_of(model, batch):
        loss = model(batch.images_BCHW).square().mean()
        # At the first scale the gradient overflows, as it would in float16.
        return _Overflow.apply(loss) if scaler.scale == 2.0**20 else loss

    finished, progress = run(
        model,
        optimizers,
        scaler=scaler,
        loss_of=loss_of,
        after_update=updates.append,
        log_step=lambda _, metrics: (
            scales.append(metrics["loss_scale"]),
            weights.append(model.line.weight.detach().clone()),
        ),
    )

    assert finished
    assert (progress.step, progress.skipped_updates) == (10, 1)
    assert updates == list(range(1, 10))
    assert scales == [2.0**20] + [2.0**19] * 9
    assert torch.equal(weights[0], fresh()[0].line.weight)
    assert not torch.equal(weights[1], weights[0])


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def test_a_scaled_loss_learns_what_the_plain_one_does_to_the_bit():
    plain, optimizers = fresh()
    run(plain, optimizers)
    scaled, optimizers = fresh()
    run(scaled, optimizers, scaler=LossScaler(scale=2.0**10, is_fixed=False))

    assert torch.equal(plain.line.weight, scaled.line.weight)


def test_the_best_checkpoint_is_saved_out_of_turn():
    saved, values = [], iter([3.0, 2.0, 4.0, 1.0, 1.0])

    run(
        *fresh(),
        the_plan=plan(eval_every_steps=2, save_every_steps=5),
        evaluate=lambda _: {"val/loss": next(values)},
        note_best=lambda p, metrics: BestWatch("loss", "val").note(p.best, metrics),
        save=lambda p, best: saved.append((p.step, list(best), dict(p.best))),
    )

    assert saved == [
        (2, ["best"], {"best": 3.0}),
        (4, ["best"], {"best": 2.0}),
        (5, [], {"best": 2.0}),
        (8, ["best"], {"best": 1.0}),
        (10, [], {"best": 1.0}),
    ]
