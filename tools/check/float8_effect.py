"""Do float8 MLPs learn as well?  The same small runs in float32, bfloat16 and emulated float8.

    python tools/check/float8_effect.py MANIFESTS TEST_MANIFESTS [--num-steps 200] [--num-seeds 3] \
        [--out docs/internals/benchmarks.md]

Runs of one seed have the same first weights, images and crops: what differs is rounding.  So the
difference of bfloat16 to float32, which nobody minds, is what float8's is to be held against.
Besides, the MLPs of a trained model are computed once in each way, and held against float64.

torchao emulates float8 on any device: matrices are scaled and rounded as on the hardware, and
multiplied in float32.  It is given bfloat16, as on a GPU.  What is not emulated is the shorter
accumulator of Hopper's forward products.  How fast it is, no CPU can say: `bench_gpu.py`.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from emulated_float8 import CPU, PRECISION, Way, in_float8, mlp_calls, mlp_errors
from torch import nn

from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import EvalLoader
from vit21k.distributed import World
from vit21k.inference.evaluate import evaluate
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import IMAGES
from vit21k.models.registry import build_model
from vit21k.optim.optimizers import set_lr
from vit21k.recipe.load import load_recipe
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import build_schedule, eval_transform_of, sampler_of
from vit21k.training.context import (
    RunContext,
    RunOptions,
    build_train_state,
    model_args_of,
    new_model,
    open_split_data,
)
from vit21k.training.gradients import clip, dropout_seed, seed_dropout
from vit21k.training.loop import StagedLoader
from vit21k.training.objective import Objective
from vit21k.training.reporter import Reporter

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

PAIRS: Sequence[tuple[Way, Way]] = (("bfloat16", "float32"), ("float8", "bfloat16"))
NUM_CURVE_POINTS = 4
MEAN_OF = 20  # steps, for a point of a curve


@dataclass(frozen=True)
class Result:
    """What a run came to: the loss of each step, prec@1 on the test images, the model."""

    losses: list[float]
    prec1: float
    model: nn.Module

    def curve(self) -> list[float]:
        """Return the mean loss up to each quarter of the run, over `MEAN_OF` steps."""
        ends = (len(self.losses) * k // NUM_CURVE_POINTS for k in range(1, NUM_CURVE_POINTS + 1))
        return [statistics.mean(self.losses[max(0, end - MEAN_OF) : end]) for end in ends]


def recipe_of(options: argparse.Namespace, way: Way, seed: int) -> Recipe:
    """Return the recipe of a run, evaluated at its end only."""
    changes = (
        "epochs=null",
        f"total_steps={options.num_steps}",
        f"schedule.warmup_steps={options.num_steps // 10}",
        "run.eval_every_steps=0",
        f"seed={seed}",
        f"precision={PRECISION[way]}",
    )
    return load_recipe(options.recipe, [*changes, *options.set])


def run(options: argparse.Namespace, way: Way, seed: int) -> Result:
    """Train from the start, and evaluate."""
    recipe = recipe_of(options, way, seed)
    context = context_of(options, recipe)
    model = new_model(recipe, num_classes=len(context.data.classes))
    state = build_train_state(context, in_float8(model) if way == "float8" else model)
    params = [param for param in state.model.parameters() if param.requires_grad]
    losses: list[float] = []
    with closing(StagedLoader(context, recipe.data.device_batch_size)) as loader:
        for step in range(context.schedule.total_steps):
            seed_dropout(dropout_seed(recipe.seed, step, rank=0), CPU)
            set_lr(state.optimizers, context.schedule(step))
            losses.append(0.0)
            for batch in loader.micro_batches(step):
                share = len(batch.rows_B) / recipe.data.global_batch_size
                loss = context.objective.loss(state.model, batch) * share
                loss.backward()  # type: ignore[no-untyped-call]
                losses[-1] += float(loss)
            clip(params, recipe.optim.grad_clip_norm)
            for optimizer in state.optimizers:
                optimizer.step()
                optimizer.zero_grad()
    result = Result(losses, prec1_of(options, context, state.model), state.model)
    print(way, seed, [round(loss, 4) for loss in result.curve()], result.prec1, flush=True)
    return result


def context_of(options: argparse.Namespace, recipe: Recipe) -> RunContext:
    """Return what a run is made from; it writes nothing."""
    data = open_split_data(options.manifests, None)
    run_options = RunOptions(
        manifests=options.manifests,
        root=None,
        run_dir=Path(),
        device="cpu",
        num_workers=0,
        device_batch_size=None,
    )
    sampler = sampler_of(recipe, data.train, World(), in_pairs=recipe.augment.mixes)
    return RunContext(
        recipe=recipe,
        options=run_options,
        reporter=Reporter(),
        world=World(),
        data=data,
        args=model_args_of(recipe, num_classes=len(data.classes)),
        objective=Objective(recipe=recipe, device=CPU),
        sampler=sampler,
        schedule=build_schedule(recipe, sampler.steps_per_epoch),
    )


def prec1_of(options: argparse.Namespace, context: RunContext, model: nn.Module) -> float:
    """Return prec@1 on the test images of a plain model with the weights, as `vit21k eval`."""
    data, precision = context.recipe.data, context.recipe.products_in
    loader = EvalLoader(
        ImageDataset.from_manifest(open_manifest(options.test_manifests, IMAGES)),
        eval_transform_of(data, context.recipe.model.img_size),
        device_batch_size=250,
        num_workers=0,
    )
    plain = build_model(context.args)
    plain.load_state_dict(model.state_dict())
    with loader:
        metrics = evaluate(plain, loader, mean=data.mean, std=data.std, precision=precision)
    return float(metrics["prec@1"])


def error_table(options: argparse.Namespace, model: nn.Module) -> str:
    """Return the relative errors of a trained model's MLPs on a batch: means over the MLPs."""
    context = context_of(options, recipe_of(options, "float32", 0))
    device_batch_size = context.recipe.data.device_batch_size
    with closing(StagedLoader(context, device_batch_size)) as loader:
        batch = next(loader.micro_batches(0))
    calls = mlp_calls(model, partial(context.objective.loss, batch=batch))
    lines = []
    for way in PRECISION:
        columns = zip(*mlp_errors(model, calls, way), strict=True)
        lines.append([way, *(f"{statistics.mean(column):.1e}" for column in columns)])
    head = [
        "relative error of",
        "output",
        "gradient of the input",
        "of fc1.weight",
        "of fc2.weight",
    ]
    return table(head, lines)


def learning_table(results: Mapping[Way, Sequence[Result]]) -> str:
    """Return losses along the runs and prec@1, means over the seeds; then paired differences."""
    numbers = {
        way: [[*result.curve(), result.prec1] for result in of_way]
        for way, of_way in results.items()
    }
    lines = [
        [way, *(f"{statistics.mean(column):.4f}" for column in zip(*of_way, strict=True))]
        for way, of_way in numbers.items()
    ]
    for one, other in PAIRS:
        differences = [
            [a - b for a, b in zip(*pair, strict=True)]
            for pair in zip(numbers[one], numbers[other], strict=True)
        ]
        columns = zip(*differences, strict=True)
        lines.append([f"{one} less {other}", *map(mean_and_spread, columns)])
    spreads = zip(*numbers["bfloat16"], strict=True)
    lines.append(["between seeds of bfloat16", *(f"± {spread(column):.4f}" for column in spreads)])
    num_steps = len(results["float8"][0].losses)
    ends = (num_steps * part // NUM_CURVE_POINTS for part in range(1, NUM_CURVE_POINTS + 1))
    return table(["", *(f"loss to step {end}" for end in ends), "prec@1"], lines)


def mean_and_spread(values: Sequence[float]) -> str:
    """Return the mean and the standard deviation."""
    return f"{statistics.mean(values):+.4f} ± {spread(values):.4f}"


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def measure(options: argparse.Namespace) -> str:
    """Return both tables, with what they were measured on."""
    results: dict[Way, list[Result]] = {way: [] for way in PRECISION}
    for seed in range(options.num_seeds):
        for way, of_way in results.items():
            of_way.append(run(options, way, seed))
    recipe = recipe_of(options, "float32", 0)
    what = (
        f"`{options.recipe}`{''.join(f', `{words}`' for words in options.set)}; "
        f"{options.num_steps} steps of {recipe.data.global_batch_size} images, "
        f"{options.num_seeds} seeds; a loss is the mean of {MEAN_OF} steps, ± the standard "
        f"deviation over the seeds; torch {torch.__version__}, torchao {version('torchao')}."
    )
    errors = error_table(options, results["float32"][0].model)
    return f"{what}\n\n{learning_table(results)}\n\n{errors}"


def parse_args(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifests", type=Path, help="folder with train.parquet and val.parquet")
    parser.add_argument("test_manifests", type=Path, help="folder with images.parquet")
    parser.add_argument("--recipe", default="cifar10_cpu")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--num-seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Measure, print, and write the tables where it is asked for."""
    options = parse_args(words)
    text = measure(options)
    print(text)
    if options.out:
        return write_or_check(options.out, {"float8_effect": text}, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
