"""What the loop calls: the next pictures, the loss, the log, the evaluation, the checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial

from torch import nn
from torch.optim import Optimizer

from vit21k.atomic import write_atomic
from vit21k.checkpoint.optimizer_state import optimizers_to_tensors
from vit21k.checkpoint.store import save_checkpoint
from vit21k.config.recipe import dump_recipe
from vit21k.data.loader import Batch, EvalLoader, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.inference.evaluate import evaluate
from vit21k.training import parts
from vit21k.training.loop import Hooks, Plan, Progress
from vit21k.training.run_log import RunLog
from vit21k.training.setup import Listener, Setup
from vit21k.training.stop_signal import StopSignal


def hooks_of(
    setup: Setup,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    *,
    loader: TrainLoader,
    sampler: StepSampler,
    log: RunLog,
    device_batch_size: int,
    stop: StopSignal,
) -> Hooks:
    """Return what the loop calls for the run of *setup*."""
    return Hooks(
        micro_batches=partial(_micro_batches, loader, sampler, setup.listener),
        loss_of=partial(parts.loss_of, recipe=setup.recipe, device=setup.device),
        log_step=partial(_log_step, log, loader),
        evaluate=partial(_evaluate, setup, device_batch_size),
        log_evaluation=log.log_evaluation,
        save=partial(_save, setup, model, optimizers),
        should_stop=lambda: stop.received is not None,
    )


def train_loader_of(setup: Setup, sampler: StepSampler, device_batch_size: int) -> TrainLoader:
    """Return the loader of the training pictures."""
    return TrainLoader(
        setup.data.train,
        sampler,
        parts.train_transform_of(setup.recipe),
        device_batch_size=device_batch_size,
        num_workers=setup.place.num_workers,
        seed=setup.recipe.seed,
        on_bad_image=setup.recipe.data.on_bad_image,
    )


def run_log_of(setup: Setup, plan: Plan, progress: Progress) -> RunLog:
    """Return the log, opened where *progress* is."""
    return RunLog(
        setup.place.run_dir,
        resumed_step=progress.step,
        resumed_images=progress.images_seen,
        total_steps=plan.total_steps,
        every_steps=plan.log_every_steps,
        peak_lr=setup.recipe.optim.lr,
        tell=setup.listener.line if setup.world.rank == 0 else None,
    )


def _micro_batches(
    loader: TrainLoader, sampler: StepSampler, listener: Listener, step: int
) -> Iterator[Batch]:
    """Yield the micro-batches of a step, and tell of each one: a step can take hours on a CPU."""
    num_done, num_images = 0, sampler.num_rows(step)
    for batch in loader.micro_batches(step):
        yield batch
        num_done += len(batch.rows_B)
        listener.micro_step(step, num_done, num_images)


def _log_step(
    log: RunLog, loader: TrainLoader, progress: Progress, metrics: Mapping[str, float]
) -> None:
    log.log_step(progress, {**metrics, "num_skipped": loader.num_skipped})


def _evaluate(setup: Setup, device_batch_size: int, model: nn.Module) -> dict[str, float]:
    recipe = setup.recipe
    loader = EvalLoader(
        setup.data.val,
        parts.eval_transform_of(recipe),
        device_batch_size=device_batch_size,
        num_workers=setup.place.num_workers,
        rank=setup.world.rank,
        world_size=setup.world.world_size,
        on_bad_image=recipe.data.on_bad_image,
    )
    metrics = evaluate(
        model,
        loader,
        loss_kind=recipe.loss.kind,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=setup.device,
        world=setup.world,
        precision=recipe.precision,
    )
    return {f"{setup.data.val_name}/{name}": value for name, value in metrics.items()}


def _save(
    setup: Setup, model: nn.Module, optimizers: Sequence[Optimizer], progress: Progress
) -> None:
    recipe, run_dir = setup.recipe, setup.place.run_dir
    if setup.world.rank == 0:
        write_atomic(run_dir / "recipe.yaml", dump_recipe(recipe).encode())
        save_checkpoint(
            run_dir,
            progress.step,
            model_state=model.state_dict(),
            model_config=parts.model_config_of(recipe, setup.args, setup.data.classes),
            optimizer_state=optimizers_to_tensors(model, optimizers),
            state={
                "progress": asdict(progress),
                "recipe": parts.identity_of(recipe),
                "train_manifest": setup.data.fingerprint,
            },
            keep_last=recipe.run.keep_last,
        )
    setup.world.barrier()
