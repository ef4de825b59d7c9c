"""Run context and train state: data, recipe, folder; model, optimizers, progress."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.checkpoint.store import find_latest
from vit21k.data.dataset import CacheOptions, ImageDataset
from vit21k.data.sampler import StepSampler
from vit21k.device import Precision, best_precision, is_emulated
from vit21k.distributed import World
from vit21k.errors import ManifestError
from vit21k.manifest import with_folder
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import Manifest, open_manifest, read_manifest
from vit21k.manifest.schema import CLASSES, TRAIN, VAL
from vit21k.models.init_weights import init_vit
from vit21k.models.registry import PIT_ARGUMENTS, VIT_ARGUMENTS, build_model, model_args
from vit21k.models.vit import ImageClassifier
from vit21k.optim.optimizers import LossScaler, build_optimizers, loss_scaler_of
from vit21k.optim.schedule import Ema, LrSchedule
from vit21k.recipe.schema import Recipe
from vit21k.sources.read import Root
from vit21k.training.builders import freeze
from vit21k.training.gradients import shard
from vit21k.training.objective import Objective
from vit21k.training.reporter import Reporter


@dataclass(frozen=True, kw_only=True)
class SplitData:
    """The two sides of a split.

    Attributes:
        train: Training images.
        val: Evaluation images.
        val_name: Prefix of the metrics on *val*: `dummy_val` if its images are also in train.
        classes: The class list of both.
        fingerprint: Of the train manifest.
        val_fingerprint: Of the val manifest.
    """

    train: ImageDataset
    val: ImageDataset
    val_name: str
    classes: ClassList
    fingerprint: str
    val_fingerprint: str


def open_split_data(
    manifests: Path,
    root: Root | None,
    note: Callable[[str], None] = lambda _text: None,
    cache: CacheOptions | None = None,
) -> SplitData:
    """Open both manifests of a folder.

    Args:
        manifests: The folder.
        root: Current image root; None: the one that was hashed.
        note: Called before steps that take long.
        cache: Cache of images of a URL.

    Raises:
        ManifestError: One is missing, damaged or stale, or has no images, or the two have
            different class lists, or random reads of their images are slow.
    """
    train, val = open_manifest(manifests, TRAIN), open_manifest(manifests, VAL)
    if train.header.classes != val.header.classes:
        raise ManifestError(
            f"`{train.path}` and `{val.path}` are labelled by different class lists",
            hint="make both again with `vit21k make-val`",
        )
    if not train.num_rows:
        raise ManifestError(
            f"`{train.path}` holds no images: all of them are held out for val",
            hint=f"`{with_folder('vit21k make-val --per-class 1', manifests)}` keeps them in train",
        )
    if not val.num_rows:
        raise ManifestError(
            f"`{val.path}` holds no images",
            hint="only images with one label are in val: `vit21k make-val` says how many",
        )
    data = SplitData(
        train=ImageDataset.from_manifest(train, root, mapped=True, note=note, cache=cache),
        val=ImageDataset.from_manifest(val, root, mapped=True, note=note, cache=cache),
        val_name=metric_prefix(val),
        classes=_with_names(train.classes(), manifests),
        fingerprint=train.fingerprint,
        val_fingerprint=val.fingerprint,
    )
    if data.train.has_slow_images or data.val.has_slow_images:
        source, pack = (shlex.quote(f"{manifests}{suffix}") for suffix in ("", "_pack"))
        raise ManifestError(
            f"the images of `{manifests}` are in compressed Parquet files: to read one, a row "
            "group is decoded",
            hint=f"copy them once, `vit21k pack --lossless --manifests {source} --out {pack}`, "
            f"and train on the copy: `vit21k train --manifests {pack}`",
        )
    return data


def _with_names(classes: ClassList, manifests: Path) -> ClassList:
    """Return *classes* with the names in classes.parquet of the folder, if it is that list."""
    try:
        rows = read_manifest(manifests, CLASSES, ["wnid", "name"])
    except ManifestError:
        return classes
    named = ClassList(tuple(rows["wnid"].to_pylist()), tuple(rows["name"].to_pylist()))
    return named if named.fingerprint == classes.fingerprint else classes


def metric_prefix(manifest: Manifest) -> str:
    """Return the prefix of metrics on *manifest*; a dummy split gives no held-out accuracy."""
    if manifest.header.options.get("split") == "dummy" and manifest.kind is VAL:
        return "dummy_val"
    return manifest.kind.name


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of the command line: they change rounding only.

    Attributes:
        manifests: Folder of train.parquet and val.parquet.
        root: Image root, if the tree has moved since it was hashed.
        run_dir: Folder of the run.
        device: As torch names it: "cpu", "cuda", ...
        num_workers: Decoding threads of each process.
        device_batch_size: Images in one forward pass; None: the recipe's number, if they fit.
        recipe_name: Name of the recipe.
        log_to: Logs besides metrics.jsonl: names in `sinks.SINKS`.
        peak_flops: Of one device, for MFU; None: measured.
        cache: Cache of images of a URL on this node; None: there is none.
    """

    manifests: Path
    root: Root | None
    run_dir: Path
    device: str
    num_workers: int
    device_batch_size: int | None
    recipe_name: str = ""
    log_to: tuple[str, ...] = ()
    peak_flops: float | None = None
    cache: CacheOptions | None = None


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A checkpoint of another run that a new run starts from: weights, optimizer and step.

    Attributes:
        run_dir: The other run.
        step: Of the checkpoint; None: the newest.
    """

    run_dir: Path
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Everything a run needs besides its train state.

    Attributes:
        recipe: Its precision is not `auto`.
        options: Of the command line.
        reporter: Reports nothing on all processes except the first.
        world: The processes.
        data: The images.
        args: Every argument of the model's constructor.
        objective: The loss.
        sampler: Order of the training images in this process.
        schedule: Length of the run and learning rate.
    """

    recipe: Recipe
    options: RunOptions
    reporter: Reporter
    world: World
    data: SplitData
    args: Mapping[str, Any]
    objective: Objective
    sampler: StepSampler
    schedule: LrSchedule

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.objective.device


# Fields that may differ between a run and its resumption: they change rounding only; or the
# handling of bad images, so that a run that they stopped can resume.
_NOT_IDENTITY: dict[str, Any] = {
    "source": True,
    "commit": True,
    "run": True,
    "parallel": True,
    "step": {"compile", "attention", "recompute"},
    "data": {"device_batch_size", "on_bad_image", "max_bad_rate"},
    "loss": {"tree"},  # the contents of these files are in the state
    "distill": {"teacher"},
}

NAMED_BY_CONTENT: dict[str, Any] = {"source": True, "loss": {"tree"}, "distill": {"teacher"}}
"""Fields that may differ between the processes of a run: paths of files."""


def recipe_identity(recipe: Recipe) -> dict[str, Any]:
    """Return the fields that a run must have in common with the checkpoint it resumes from."""
    fields: dict[str, Any] = recipe.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return fields


def model_args_of(recipe: Recipe, *, num_classes: int) -> dict[str, Any]:
    """Return every argument of the model's constructor."""
    fields = recipe.model.model_dump(include={*VIT_ARGUMENTS, *PIT_ARGUMENTS})
    overrides = {name: value for name, value in fields.items() if value is not None}
    return model_args(recipe.model.name, num_classes=num_classes, **overrides)


def new_model(recipe: Recipe, *, num_classes: int) -> ImageClassifier:
    """Return the model with its first weights, which depend on the recipe only."""
    model = build_model(
        model_args_of(recipe, num_classes=num_classes),
        recompute=recipe.step.recompute == "cheap",
        any_size=bool(recipe.curriculum.img_sizes),
        both_heads=recipe.distill.kind is not None,
    )
    init_vit(
        model,
        scheme=recipe.model.init_scheme,
        head_init=recipe.model.head_init,
        head_init_std=recipe.model.head_init_std,
        head_bias_init=recipe.model.head_bias_init,
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    freeze(model, recipe.model)
    return model


def resolve_precision(
    recipe: Recipe, device: str, world: World, *, run_dir: Path | None, reporter: Reporter
) -> Recipe:
    """Return *recipe* with a precision in place of `auto`; warn if its precision is emulated.

    A resumed run keeps its precision.  If one process lacks bfloat16, all use float32.

    Args:
        recipe: The recipe.
        device: Of this process.
        world: All processes call this.
        run_dir: The run that is resumed if it has checkpoints; None: a new one.
        reporter: Reports the precision.
    """
    if recipe.precision == "auto":
        recorded = _recorded_precision(run_dir)
        wanted = recorded or best_precision(device)
        votes = torch.tensor([float(wanted == "fp32")], device=device)
        chosen = "fp32" if world.all_reduce_sum(votes).item() else wanted
        recipe = recipe.model_copy(update={"precision": chosen})
        why = "as the run began" if recorded else f"auto, on this {torch.device(device).type}"
        reporter.note(f"precision: {chosen} ({why})")
    if is_emulated(device, recipe.products_in):
        reporter.warn(
            f"precision {recipe.precision} is emulated on this {torch.device(device).type}, which "
            "has no instructions for it: training is many times slower than with "
            "`--set precision=fp32`, which is another run"
        )
    return recipe


def _recorded_precision(run_dir: Path | None) -> Precision | None:
    """Return the precision of the run's checkpoints; None if it has none."""
    if run_dir is None or not run_dir.is_dir():
        return None
    checkpoint = find_latest(run_dir, only=()).checkpoint
    return None if checkpoint is None else checkpoint.state["recipe"].get("precision")


def model_config_of(recipe: Recipe, args: Mapping[str, Any], classes: ClassList) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint."""
    settings = EvalSettings(
        img_size=recipe.model.img_size,
        mode=recipe.data.eval_mode,
        resize=recipe.data.eval_resize,
        interpolation=recipe.data.eval_interpolation,
        mean=recipe.data.mean,
        std=recipe.data.std,
    )
    # One softmax over all classes, although classes of different levels are not comparable.
    loss_kind = "softmax" if recipe.loss.kind == "semantic_softmax" else recipe.loss.kind
    return model_config(recipe.model.name, args, classes, settings, loss_kind)


@dataclass
class Progress:
    """Progress of the run.  Saved in every checkpoint."""

    step: int = 0
    """Optimizer updates made, or skipped."""
    images_seen: int = 0
    """Images trained on, over all processes; an image counts once each time."""
    skipped_updates: int = 0
    """Updates that the loss scaler skipped, because float16 had overflowed."""
    best: dict[str, float] = field(default_factory=dict)
    """The best value so far of the recipe's `best_metric`, by the name of the checkpoint."""
    images_replaced: int = 0
    """Of the images seen, those that replaced bad ones."""
    empty_updates: int = 0
    """Of the skipped updates, those without a single good image."""
    loss_sum: float = 0.0
    """Sum of the losses since the last line of the log."""
    num_losses: int = 0
    """Number of these losses."""
    owes_evaluation: bool = False
    """Whether an error ended the evaluation that was due at this step."""
    weight_norm: float | None = None
    """L2 norm of the weights at the last checkpoint."""

    def advance(self, num_images: int, *, is_update: bool) -> None:
        """Count a step of *num_images*, whether or not the weights were updated."""
        self.step += 1
        self.images_seen += num_images
        self.skipped_updates += not is_update
        self.empty_updates += not num_images


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of a run besides its progress.

    Attributes:
        model: On its device, in train mode; sharded over the processes if the recipe says so.
        optimizers: Of its parameters.
        ema: The average of its parameters, if the recipe has one.
        scaler: Of its loss.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    ema: Ema | None
    scaler: LossScaler

    @property
    def is_sharded(self) -> bool:
        """Whether each process has only a part of the weights."""
        return any(hasattr(param, "full_tensor") for param in self.model.parameters())


def build_train_state(run: RunContext, model: nn.Module) -> TrainState:
    """Build the train state of *run* from *model*, with the same weights in every process."""
    recipe = run.recipe
    if recipe.parallel.kind == "fsdp" and run.world.world_size > 1:
        shard(model, run.world, device=run.device, precision=recipe.products_in)
    ema = None
    if recipe.ema.decay is not None:
        ema = Ema(model, decay=recipe.ema.decay, warmup_steps=recipe.ema.warmup_steps)
    return TrainState(
        model=model,
        optimizers=build_optimizers(model, recipe.optim),
        ema=ema,
        scaler=loss_scaler_of(recipe.products_in),
    )
