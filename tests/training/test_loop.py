"""The training loop on a model of three weights: its order, and that resuming changes nothing."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vit21k.data.loader import Batch
from vit21k.data.sampler import StepSampler
from vit21k.distributed import World
from vit21k.errors import NonFiniteLossError
from vit21k.optim.optimizers import LossScaler, build_optimizers
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.load import load_recipe
from vit21k.recipe.schema import CurriculumSection, OptimSection
from vit21k.training.context import Progress, RunContext, TrainState
from vit21k.training.curriculum import Curriculum, PatchDropper
from vit21k.training.loop import Trainer
from vit21k.training.reporter import Reporter

BATCH, TOTAL_STEPS = 8, 10
CPU = torch.device("cpu")
SETTINGS = [
    f"data.global_batch_size={BATCH}",
    "optim.grad_clip_norm=1.0",
    "run.eval_every_steps=0",
    "run.save_every_steps=5",
    "schedule.warmup_steps=0",
]


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


def fresh(model_class=Noisy, **changes):
    """Return the state of a run that begins."""
    torch.manual_seed(0)
    model = model_class()
    optimizers = build_optimizers(model, OptimSection(kind="adamw", lr=0.1))
    state = TrainState(model=model, optimizers=optimizers, ema=None, scaler=LossScaler())
    return replace(state, **changes)


def squared(model, batch, _kept=None):
    return model(batch.images_BCHW).square().mean()


def run(state, progress=None, *, settings=(), total_steps=TOTAL_STEPS, **calls):
    """Train, with *calls* in place of what reads images, computes the loss, logs and saves."""
    progress = progress or Progress()
    of = {"save": _nothing, "log_step": _nothing, "log_evaluation": _nothing, **calls}
    recipe = load_recipe("tiny", [*SETTINGS, *settings])
    stop = of.get("stop", SimpleNamespace(is_asked=False, guarded=lambda batches: batches))
    curriculum = Curriculum(section=CurriculumSection(), img_size=1, total_steps=total_steps)
    trainer = Trainer(
        run=RunContext(
            recipe=recipe,
            options=None,
            reporter=Reporter(),
            world=World(),
            data=SimpleNamespace(val_name="val"),
            args={},
            objective=SimpleNamespace(loss=of.get("loss", squared)),
            sampler=StepSampler(80, global_batch_size=BATCH, seed=0),
            schedule=LrSchedule(total_steps=total_steps, decay="linear"),
        ),
        state=state,
        loader=SimpleNamespace(micro_batches=of.get("micro_batches", micro_batches)),
        patches=PatchDropper(curriculum, patch_size=1, device=CPU),
        evaluation=SimpleNamespace(metrics=of.get("metrics", lambda: {"val/loss": 0.0})),
        log=SimpleNamespace(log_step=of["log_step"], log_evaluation=of["log_evaluation"]),
        meters=SimpleNamespace(waiting=lambda batches: batches),
        losses=SimpleNamespace(start_step=_nothing, note=_nothing),
        checkpoints=SimpleNamespace(save=of["save"], writer=SimpleNamespace(check=_nothing)),
        stop=stop,
    )
    return trainer.train(progress), progress


def _nothing(*_):
    pass


def test_a_resumed_run_ends_with_bit_identical_weights():
    state, saved = fresh(), {}

    def save(progress, _best=()):
        states = [optimizer.state_dict() for optimizer in state.optimizers]
        saved[progress.step] = copy.deepcopy((progress, state.model.state_dict(), states))

    run(state, save=save)
    progress, weights, states = saved[5]
    resumed = fresh()
    resumed.model.load_state_dict(weights)
    for optimizer, its in zip(resumed.optimizers, states, strict=True):
        optimizer.load_state_dict(its)
    torch.manual_seed(12345)
    run(resumed, progress)

    assert torch.equal(resumed.model.line.weight, state.model.line.weight)
    assert progress == Progress(step=10, images_seen=80)


def test_what_happens_when():
    saved, evaluated, logged = [], [], []

    finished, _ = run(
        fresh(),
        save=lambda p, _=(): saved.append(p.step),
        log_step=lambda p, metrics: logged.append((p.step, sorted(metrics))),
        log_evaluation=lambda p, _: evaluated.append(p.step),
    )

    assert finished
    assert saved == [5, 10]
    assert evaluated == [10]
    names = ["grad_norm", "loss", "loss_scale", "lr_factor", "num_replaced", "num_skipped"]
    assert logged == [(step, names) for step in range(1, 11)]


def test_small_micro_batches_give_the_gradient_of_the_whole_batch():
    class Plain(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 2)

    whole, parts = fresh(Plain), fresh(Plain)
    run(whole)
    run(parts, micro_batches=lambda step: micro_batches(step, size=3))

    torch.testing.assert_close(parts.model.weight, whole.model.weight)


def test_a_batch_with_fewer_images_than_planned_is_averaged_over_those_it_has():
    lines = []
    expected = next(micro_batches(0, skip=3)).images_BCHW.square().mean().item()

    _, progress = run(
        fresh(_Scale),
        total_steps=1,
        settings=["optim.grad_clip_norm=null"],
        micro_batches=lambda step: micro_batches(step, skip=3),
        log_step=lambda _, metrics: lines.append(metrics),
    )

    assert [line["loss"] for line in lines] == [pytest.approx(expected)]
    assert [line["num_skipped"] for line in lines] == [3]
    assert progress.images_seen == BATCH - 3


class _Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.weight * images


def test_a_loss_that_is_not_a_number_ends_the_run_before_it_reaches_the_weights():
    state = fresh()
    before = copy.deepcopy(state.model.state_dict())

    with pytest.raises(NonFiniteLossError, match="nan at step 1"):
        run(state, loss=lambda m, b, _: m(b.images_BCHW).mean() * math.nan)

    after = state.model.state_dict()
    assert all(torch.equal(before[name], value) for name, value in after.items())


def test_a_signal_ends_the_run_between_two_updates_after_a_save():
    saved, answers = [], iter([False] * 5 + [True] * 5)

    class Stop:
        is_asked = property(lambda _: next(answers))
        guarded = staticmethod(lambda batches: batches)

    finished, progress = run(fresh(), stop=Stop(), save=lambda p, _=(): saved.append(p.step))

    assert not finished
    assert saved == [progress.step]
    assert progress.step < 10


def test_the_gradient_norm_is_that_before_clipping():
    norms = []

    run(
        fresh(),
        settings=["optim.grad_clip_norm=0.001"],
        log_step=lambda _, metrics: norms.append(metrics["grad_norm"]),
    )

    assert max(norms) > 1e-2


def test_an_update_that_float16_overflowed_in_is_skipped_and_counted():
    updates, scales, weights = [], [], []
    state = fresh(
        scaler=LossScaler(scale=2.0**20, is_fixed=False), ema=SimpleNamespace(update=updates.append)
    )

    def loss(model, batch, _kept):
        value = squared(model, batch)
        # At the first scale the gradient overflows, as it would in float16.
        return _Overflow.apply(value) if state.scaler.scale == 2.0**20 else value

    finished, progress = run(
        state,
        loss=loss,
        log_step=lambda _, metrics: (
            scales.append(metrics["loss_scale"]),
            weights.append(state.model.line.weight.detach().clone()),
        ),
    )

    assert finished
    assert (progress.step, progress.skipped_updates) == (10, 1)
    assert updates == list(range(1, 10))
    assert scales == [2.0**20] + [2.0**19] * 9
    assert torch.equal(weights[0], fresh().model.line.weight)
    assert not torch.equal(weights[1], weights[0])


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def test_a_scaled_loss_is_bit_identical_to_an_unscaled_one():
    plain, scaled = fresh(), fresh(scaler=LossScaler(scale=2.0**10, is_fixed=False))
    run(plain)
    run(scaled)

    assert torch.equal(plain.model.line.weight, scaled.model.line.weight)


def test_the_best_checkpoint_is_saved_out_of_turn():
    saved, values = [], iter([3.0, 2.0, 4.0, 1.0, 1.0])

    run(
        fresh(),
        settings=["run.eval_every_steps=2", "run.best_metric=loss"],
        metrics=lambda: {"val/loss": next(values)},
        save=lambda p, best=(): saved.append((p.step, list(best), dict(p.best))),
    )

    assert saved == [
        (2, ["best"], {"best": 3.0}),
        (4, ["best"], {"best": 2.0}),
        (5, [], {"best": 2.0}),
        (8, ["best"], {"best": 1.0}),
        (10, [], {"best": 1.0}),
    ]
