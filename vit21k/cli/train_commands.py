"""`train`: a shell around `training.run`."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.dataset_commands import prepare_data
from vit21k.cli.device_options import Device, NumWorkers, device_or_best, workers_or_cores
from vit21k.cli.dry_run import (
    DryRunFlag,
    DryRunJson,
    PlotSchedule,
    Rate,
    check_options,
    reckon,
    report,
)
from vit21k.cli.model_options import WhichWeights
from vit21k.cli.options import DEFAULT_MANIFESTS, ImageRoot, Manifests, for_manifests
from vit21k.cli.remote_weights import local_copy
from vit21k.cli.requires import require_torch
from vit21k.cli.train_lines import listener
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitSource
    from vit21k.config.schema import Recipe
    from vit21k.training.setup import Fork, Place

_PANEL = "Train"
_STAGE_RECIPES = {"pretrain": "pretrain_l16_in21k", "finetune": "finetune_l16_384_in1k"}

Stage = Literal["pretrain", "finetune"]


def register(app: typer.Typer) -> None:
    """Add the training commands to *app*."""
    app.command("train", rich_help_panel=_PANEL)(train_command)


def train_command(
    stage: Annotated[
        Stage | None,
        typer.Option(help="pretrain: multi-label, from scratch; finetune: from --init."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="A shipped recipe (`vit21k recipes list`) or a .yaml file instead of the stage's.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change the recipe; repeatable."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE|ADDRESS",
            help="Weights to start from: a run, a file or folder of another program, "
            "hf://owner/name, https://..., or a name of Google's (ViT-L_16).",
        ),
    ] = None,
    init_head: Annotated[
        Literal["same-classes", "from-wnids"],
        typer.Option(
            "--head",
            help="same-classes: take their head if it is for the same class list; from-wnids: take "
            "the rows of the classes that both have.",
        ),
    ] = "same-classes",
    init_classes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST|FILE",
            help="What the outputs of --init mean, if it does not say: google, in1k, or a file.",
        ),
    ] = None,
    weights: WhichWeights = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE|ADDRESS",
            help="The model to learn from, for recipes with distill.kind; as --init.",
        ),
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Instead of manifests: class folders (in `train` and `val`, or held out of), or a "
            "Hugging Face image dataset on disk. Manifests are made in the run's folder.",
        ),
    ] = None,
    root: ImageRoot = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="What the run writes; default: runs/<recipe>."),
    ] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="STEP|RUN[:STEP]",
            help="Begin a new run (--run-dir) with a checkpoint of another: weights, optimizer and "
            "step, with other settings or another length. STEP alone: of runs/<recipe>.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Start over; the run that is there is kept in RUN_DIR/previous-1."
        ),
    ] = False,
    device: Device = None,
    device_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images in one forward pass; default: the recipe's, if they fit."),
    ] = None,
    num_workers: NumWorkers = None,
    log_to: Annotated[
        str | None,
        typer.Option(
            "--log",
            metavar="NAME,...",
            help="Log there too: tensorboard, wandb, mlflow. None of them can stop the run.",
        ),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="What one device can do, for MFU; default: a matrix product, measured."
        ),
    ] = None,
    is_dry: DryRunFlag = False,
    plot_schedule: PlotSchedule = None,
    rate: Rate = None,
    as_json: DryRunJson = False,
) -> None:
    """Train a Vision Transformer: train.parquet, val.parquet -> RUN_DIR.

    A run that was stopped or killed resumes from its newest checkpoint when the same command is
    given again, and ends with the same weights as if it had not been stopped.

    [bold]Examples[/bold]

        vit21k train --stage pretrain

        vit21k train --stage finetune --init runs/pretrain_l16_in21k --manifests in1k_manifests

        vit21k train --stage finetune --init ViT-B_16 --data photos --run-dir runs/photos

        vit21k train --recipe pretrain_pit_s_distilled_in1k --teacher runs/finetune_l16_384_in1k

        vit21k train --recipe tiny --set optim.lr=1e-4 --resume-from runs/tiny:200 --run-dir runs/b

        vit21k train --recipe tiny --dry-run --plot-schedule schedule.png

        torchrun --standalone --nproc-per-node=8 -m vit21k train --stage pretrain
    """
    require_torch("train")
    from vit21k.sinks.sink import parse_sinks
    from vit21k.training.run import train_run
    from vit21k.training.setup import Place

    check_options(is_dry, plot_schedule, rate, as_json)
    _check_finite({"--rate": rate, "--peak-tflops": peak_tflops})
    plan = _load_recipe(stage, recipe, [*(overrides or []), *_teacher(teacher)])
    default_dir = Path("runs") / _run_name(plan.stage, recipe)
    fork = None if resume_from is None else _fork(resume_from, default_dir)
    place = Place(
        manifests=manifests,
        root=root,
        run_dir=run_dir or default_dir,
        device=device_or_best(device),
        num_workers=workers_or_cores(num_workers),
        device_batch_size=device_batch_size,
        recipe_name=_run_name(plan.stage, recipe),
        log_to=parse_sinks(log_to),
        peak_flops=None if peak_tflops is None else peak_tflops * 1e12,
    )
    source = _init_source(init, init_head, init_classes, weights)
    with _place_with(data, place, is_dry, fresh) as place:
        if is_dry:
            found = reckon(plan, place, source, rate, fork=fork, fresh=fresh)
            report(plan, place.recipe_name, found, plot_schedule=plot_schedule, as_json=as_json)
            return
        train_run(plan, place, listener(), init=source, fork=fork, fresh=fresh)
    _tell_finished(place)


def _check_finite(options: Mapping[str, float | None]) -> None:
    for option, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{option} is {value}, not a finite number")


def _tell_finished(place: "Place") -> None:
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, one speaks
        command = for_manifests(f"vit21k eval {place.run_dir}", place.manifests)
        console.done(f"train: finished; next: `{command}`")


@contextmanager
def _place_with(data: Path | None, place: "Place", is_dry: bool, fresh: bool) -> Iterator["Place"]:
    """Yield *place*, with manifests of *data* if that is given; a dry run forgets them."""
    if data is None:
        yield place
        return
    if place.manifests != DEFAULT_MANIFESTS or place.root is not None:
        raise UsageError("--data takes the place of --manifests and --root; give one")
    if not is_dry:
        yield replace(place, manifests=prepare_data(data, place.run_dir, fresh=fresh))
        return
    with TemporaryDirectory() as folder:
        yield replace(place, manifests=prepare_data(data, Path(folder)))


def _fork(text: str, default_dir: Path) -> "Fork":
    """Return the checkpoint that --resume-from names."""
    from vit21k.checkpoint.run_folder import step_of
    from vit21k.training.setup import Fork

    run, _, step = text.rpartition(":")
    if text.isdigit():
        return Fork(run_dir=default_dir, step=int(text))
    if run and step.isdigit():
        return Fork(run_dir=Path(run), step=int(step))
    path = Path(text)
    if step_of(path) >= 0:  # RUN/checkpoints/step-00000100
        return Fork(run_dir=path.parent.parent, step=step_of(path))
    return Fork(run_dir=path)


def _teacher(address: str | None) -> list[str]:
    """Return what names the teacher in a recipe."""
    return [] if address is None else [f"distill.teacher={json.dumps(local_copy(address))}"]


def _init_source(
    init: str | None,
    head: Literal["same-classes", "from-wnids"],
    classes: str | None,
    weights: Literal["raw", "ema"] | None,
) -> "InitSource | None":
    """Return where first weights come from, as the options say."""
    from vit21k.checkpoint.initialise import InitSource
    from vit21k.manifest.class_lists import read_classes

    if init is None:
        if head != "same-classes" or classes is not None or weights is not None:
            raise UsageError("--head, --init-classes and --weights are for the weights of --init")
        return None
    known = None if classes is None else read_classes(classes)
    return InitSource(path=local_copy(init), head=head, classes=known, weights=weights)


def _load_recipe(stage: Stage | None, recipe: str | None, overrides: list[str]) -> "Recipe":
    from vit21k.config.recipe import load_recipe

    if stage is None and recipe is None:
        raise UsageError(
            "which stage?", hint="`--stage pretrain`, `--stage finetune`, or `--recipe NAME|FILE`"
        )
    loaded = load_recipe(recipe or _STAGE_RECIPES[stage or "pretrain"], overrides)
    if stage is not None and loaded.stage != stage:
        raise UsageError(
            f"recipe `{recipe}` is for --stage {loaded.stage}, not {stage}",
            hint="leave --stage out, or choose another recipe: `vit21k recipes list`",
        )
    return loaded


def _run_name(stage: str, recipe: str | None) -> str:
    return Path(recipe).stem if recipe else _STAGE_RECIPES[stage]
