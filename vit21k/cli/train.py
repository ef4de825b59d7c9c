"""`train` and its dry run, `launch`."""

import json
import math
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.cli.next_steps import num_training_images, suggested_training, with_options
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    Device,
    ImageRoot,
    Manifests,
    NumWorkers,
    Overrides,
    WhichWeights,
    device_or_best,
    local_copy,
    parse_bytes,
    require_torch,
    workers_or_cores,
)
from vit21k.cli.prepare import prepare_data
from vit21k.errors import MissingExtraError, UsageError, Vit21kError
from vit21k.training.reporter import Reporter

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitReport, InitSource
    from vit21k.data.dataset import CacheOptions
    from vit21k.launch import Job
    from vit21k.recipe.schema import Recipe
    from vit21k.training.context import Fork, RunOptions
    from vit21k.training.forecast import Forecast
    from vit21k.training.run import DryRun

_LONG_RUN_SECONDS = 14 * 86_400
_MICRO_STEP_SECONDS = 10.0
_NOT_METRICS = ("step", "total_steps", "seconds", "eta_seconds")


class ConsoleReporter(Reporter):
    """Prints what a run reports."""

    def __init__(self) -> None:
        self._step = -1
        self._shown_at = 0.0

    def note(self, text: str) -> None:
        """Print a fact."""
        console.note(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        console.warn(text)

    def forecast(self, forecast: "Forecast") -> None:
        """Print what the run will take."""
        _print_forecast(forecast)

    def initialised(self, report: "InitReport") -> None:
        """Print where the first weights came from."""
        console.note(f"init: {report.in_words()}")

    def line(self, line: Mapping[str, Any]) -> None:
        """Print a line of the log."""
        _print_line(line)

    def micro_step(self, step: int, num_done: int, num_images: int) -> None:
        """Print the progress of a long step: a line every 10 s."""
        now = time.monotonic()
        if step != self._step:
            self._step, self._shown_at = step, now
        elif now - self._shown_at >= _MICRO_STEP_SECONDS:
            self._shown_at = now
            console.note(f"step {step + 1:,}: {num_done:,} of {num_images:,} images")


def _print_forecast(forecast: "Forecast") -> None:
    console.done(
        f"{forecast.num_params / 1e6:,.2f} M parameters, {forecast.num_images:,} images to go, "
        f"{_engineering(forecast.flops)}FLOP; "
        f"{_rate(forecast.images_per_second)} measured here, about "
        f"{console.duration(forecast.seconds)} without reading images"
    )
    if forecast.seconds > _LONG_RUN_SECONDS:
        console.warn(
            f"this run would take about {console.duration(forecast.seconds)} on this machine; it "
            "can be stopped and resumed at any time"
        )


def _print_line(line: Mapping[str, Any]) -> None:
    head = f"step {line['step']:,}/{line['total_steps']:,}"
    if "lr" not in line:
        metrics = {name: value for name, value in line.items() if name not in _NOT_METRICS}
        parts = [f"{name} {console.number(value)}" for name, value in metrics.items()]
        console.done(" | ".join([head, *parts]))
        return
    skipped = f" | {line['num_skipped']:,} skipped" if line["num_skipped"] else ""
    skipped += f" | {line['num_replaced']:,} replaced" if line["num_replaced"] else ""
    console.done(
        f"{head} | loss {line['loss']:.4f} | lr {line['lr']:.2e} | "
        f"grad norm {line['grad_norm']:.3g} | weights {line['weight_norm']:.4g} | "
        f"{_rate(line['images_per_second'])} | MFU {line['mfu']:.1%} | "
        f"waits {line['data_wait']:.0%} | {_engineering(line['memory_bytes'])}B | "
        f"ETA {console.duration(line['eta_seconds'])}{skipped}"
    )


def _rate(images_per_second: float) -> str:
    digits = 0 if images_per_second >= 100 else 2
    return f"{images_per_second:,.{digits}f} images/s"


def _engineering(value: float) -> str:
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:,.1f} {prefix}"
    return f"{value:,.0f} "


_BARS = "▁▂▃▄▅▆▇█"
_NUM_BARS = 60


@dataclass(frozen=True, kw_only=True)
class DryRunOptions:
    """Options of a dry run."""

    is_dry: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done and how long it takes."),
    ] = False
    plot_schedule: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --dry-run: plot the learning rate; ends in .html or .png."
        ),
    ] = None
    rate: Annotated[
        float | None,
        typer.Option(
            min=1e-6, help="With --dry-run: assume this many images per second; default: measured."
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print the result as JSON.")
    ] = False

    def check(self) -> None:
        """Refuse the other options without ``--dry-run``.

        Raises:
            UsageError: One of them is given.
        """
        given = {
            "--plot-schedule": self.plot_schedule is not None,
            "--rate": self.rate is not None,
            "--json": self.as_json,
        }
        if not self.is_dry and any(given.values()):
            option = next(name for name, is_given in given.items() if is_given)
            raise UsageError(f"{option} is for --dry-run")


def _report_dry_run(recipe: "Recipe", name: str, found: "DryRun", dry_run: DryRunOptions) -> None:
    """Print *found*, and plot the schedule if asked for."""
    if dry_run.as_json:
        console.print_json({"recipe": recipe.model_dump(mode="json"), **asdict(found)})
    else:
        _print(recipe, found)
    if dry_run.plot_schedule:
        _plot(found, name, dry_run.plot_schedule)
        console.note(f"the schedule is plotted in `{dry_run.plot_schedule}`")
    steps, time = found.steps, found.time
    left = steps["total_steps"] - steps["resumes_at"]
    console.done(
        f"train --dry-run: nothing written; {left:,} of {steps['total_steps']:,} steps to do, "
        f"about {console.duration(time['seconds'])} at {time['images_per_second']:,.4g} images/s "
        f"({'measured here, without reading images' if time['measured'] else 'as given'})"
    )
    console.note("next: the same command without --dry-run")


def _print(recipe: "Recipe", found: "DryRun") -> None:
    from vit21k.recipe.load import dump_recipe

    console.print_lines(dump_recipe(recipe))
    memory = {
        name: value if name == "device_batch_size" else f"{value / 1e9:,.3f} GB"
        for name, value in found.memory.items()
    }
    facts = {"data": found.data, "model": found.model, "steps": found.steps}
    console.print_facts({**facts, "memory_of_a_process_(estimate)": memory})
    console.print_lines("")
    columns = ["optimizer", "tensors", "parameters", "weight decay", "lr multiplier"]
    console.print_table(columns, [_row(group) for group in found.groups])
    if found.frozen:
        console.print_lines(f"frozen: {found.frozen:,} parameters")
    rates = [lr for _, lr in found.schedule]
    console.print_lines(f"\nlearning rate {sparkline(rates)}")
    console.print_lines(f"first {rates[0]:.3g}, maximum {max(rates):.3g}, last {rates[-1]:.3g}")


def _row(group: Mapping[str, Any]) -> list[str]:
    return [
        group["optimizer"],
        f"{group['num_tensors']:,}",
        f"{group['num_params']:,}",
        f"{group['weight_decay']:g}",
        f"{group['lr_multiplier']:g}",
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return *values* as a row of bars, from 0 to the maximum."""
    top = max(values) or 1.0
    count = min(_NUM_BARS, len(values))
    last = len(values) - 1
    chosen = [values[round(index * last / max(1, count - 1))] for index in range(count)]
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in chosen)


def _plot(found: "DryRun", name: str, out: Path) -> None:
    from vit21k.charts import Line
    from vit21k.runs.curves import Panel, Plot, css_class, write_plot

    steps, rates = zip(*found.schedule, strict=True)
    line = Line(name, steps, rates, css_class(0))
    plot = Plot([line], "step", [Panel("learning rate", [line])])
    write_plot(plot, out, title=f"learning rate of {name}")


_STAGE_RECIPES = {"pretrain": "pretrain_l16_in21k", "finetune": "finetune_l16_384_in1k"}

Stage = Literal["pretrain", "finetune"]


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Options for the first weights of a run."""

    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE|ADDRESS",
            help="Weights to start from: a run, a file or folder of another library, "
            "hf://owner/name, https://..., or a name of Google's (ViT-L_16).",
        ),
    ] = None
    init_head: Annotated[
        Literal["same-classes", "from-wnids"],
        typer.Option(
            "--head",
            help="same-classes: keep their head if it has the same class list; from-wnids: keep "
            "the rows of common classes.",
        ),
    ] = "same-classes"
    init_classes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST|FILE",
            help="Class list of --init, if its files do not state it: google, in1k, or a file.",
        ),
    ] = None
    weights: WhichWeights = None

    def source(self) -> "InitSource | None":
        """Return the source of the first weights; None without ``--init``."""
        from vit21k.checkpoint.initialise import InitSource
        from vit21k.manifest.class_lists import read_classes

        if self.init is None:
            if self.init_head != "same-classes" or self.init_classes or self.weights:
                raise UsageError("--head, --init-classes and --weights need --init")
            return None
        classes = None if self.init_classes is None else read_classes(self.init_classes)
        return InitSource(
            path=local_copy(self.init), head=self.init_head, classes=classes, weights=self.weights
        )


@dataclass(frozen=True, kw_only=True)
class CacheDir:
    """Options of the cache of remote images."""

    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep images of a URL in this folder of a local disk, which all processes of the "
            "node share.",
        ),
    ] = None
    cache_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="With --cache: its limit, such as 500GB or 2TB."),
    ] = "200GB"

    def options(self) -> "CacheOptions | None":
        """Return the options of the cache; None without ``--cache``."""
        from vit21k.data.dataset import CacheOptions

        limit = parse_bytes("--cache-size", self.cache_size)
        return CacheOptions(self.cache, limit, console.warn) if self.cache else None


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
    overrides: Overrides = None,
    *,
    init: InitOptions,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE|ADDRESS",
            help="Teacher for recipes with distill.kind; as --init.",
        ),
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Instead of manifests: class folders (below `train` and `val`, or without a "
            "split), or a Hugging Face image dataset on disk. Manifests are in the run's folder.",
        ),
    ] = None,
    root: ImageRoot = None,
    cache: CacheDir,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run; default: runs/<recipe>."),
    ] = None,
    resume_from: Annotated[
        str | None,
        typer.Option(
            metavar="STEP|RUN[:STEP]",
            help="Start a new run (--run-dir) from a checkpoint of another: weights, optimizer and "
            "step, with other settings or another length. STEP alone: of runs/<recipe>.",
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Start over; the existing run is kept in RUN_DIR/previous-1."),
    ] = False,
    device: Device = None,
    device_batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images in one forward pass; default: the recipe's, if it fits."),
    ] = None,
    num_workers: NumWorkers = None,
    log_to: Annotated[
        str | None,
        typer.Option(
            "--log",
            metavar="NAME,...",
            help="Also log to: tensorboard, wandb, mlflow. Their failures do not stop the run.",
        ),
    ] = None,
    peak_tflops: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Peak of one device, for MFU; default: a measured matrix product."
        ),
    ] = None,
    dry_run: DryRunOptions,
) -> None:
    """Train a Vision Transformer: train.parquet, val.parquet -> RUN_DIR.

    An interrupted run resumes from its newest checkpoint when the same command is repeated, and
    ends with bit-identical weights.

    [bold]Examples[/bold]

        vit21k train --stage pretrain

        vit21k train --stage finetune --init runs/pretrain_l16_in21k --manifests in1k_manifests

        vit21k train --stage finetune --init ViT-B_16 --data my_images --run-dir runs/mine

        vit21k train --recipe pretrain_pit_s_distilled_in1k --teacher runs/finetune_l16_384_in1k

        vit21k train --recipe tiny --set optim.lr=1e-4 --resume-from runs/tiny:200 --run-dir runs/b

        vit21k train --recipe tiny --dry-run --plot-schedule schedule.png

        torchrun --standalone --nproc-per-node=8 -m vit21k train --stage pretrain

        vit21k train --recipe tiny --manifests pack --root s3://bucket/pack --cache /scratch/cache
    """
    require_torch("train")
    from vit21k.training.context import RunOptions
    from vit21k.training.sinks import parse_sinks

    dry_run.check()
    _check_finite({"--rate": dry_run.rate, "--peak-tflops": peak_tflops})
    if stage is None and recipe is None:
        recipe = _suggested_recipe(None if data else manifests, init.init)
    loaded = _load_recipe(stage, recipe, [*(overrides or []), *_teacher(teacher)])
    name = _run_name(loaded.stage, recipe)
    default_dir = Path("runs") / name
    options = RunOptions(
        manifests=manifests,
        root=root,
        run_dir=run_dir or default_dir,
        device=device_or_best(device),
        num_workers=workers_or_cores(num_workers),
        device_batch_size=device_batch_size,
        recipe_name=name,
        log_to=parse_sinks(log_to),
        peak_flops=None if peak_tflops is None else peak_tflops * 1e12,
        cache=cache.options(),
    )
    fork = None if resume_from is None else _fork(resume_from, default_dir)
    first = {"init": init.source(), "fork": fork, "fresh": fresh}
    with _with_data(data, options, dry_run.is_dry, fresh) as options:
        _train(loaded, options, first, dry_run)


def _train(
    recipe: "Recipe", options: "RunOptions", first: dict[str, Any], dry_run: DryRunOptions
) -> None:
    """Train, or report a dry run; *first* are the arguments for the first weights."""
    from vit21k.training.run import dry_run as dry_run_of
    from vit21k.training.run import train_run

    reporter = ConsoleReporter()
    if dry_run.is_dry:
        found = dry_run_of(recipe, options, reporter, **first, images_per_second=dry_run.rate)
        _report_dry_run(recipe, options.recipe_name, found, dry_run)
        return
    train_run(recipe, options, reporter, **first)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes, one prints
        run = shlex.quote(str(options.run_dir))
        command = with_options(f"vit21k eval {run}", manifests=options.manifests, root=options.root)
        console.done(f"train: finished; next: `{command}`")


def _check_finite(options: Mapping[str, float | None]) -> None:
    for option, value in options.items():
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{option} is {value}, not a finite number")


@contextmanager
def _with_data(
    data: Path | None, options: "RunOptions", is_dry: bool, fresh: bool
) -> Iterator["RunOptions"]:
    """Yield *options*, with manifests of *data* if given; those of a dry run are temporary."""
    if data is None:
        yield options
        return
    if options.manifests != DEFAULT_MANIFESTS or options.root is not None:
        raise UsageError("--data replaces --manifests and --root; give one of them")
    if not is_dry:
        yield replace(options, manifests=prepare_data(data, options.run_dir, fresh=fresh))
        return
    with TemporaryDirectory() as folder:
        yield replace(options, manifests=prepare_data(data, Path(folder)))


def _fork(text: str, default_dir: Path) -> "Fork":
    """Return the checkpoint of --resume-from."""
    from vit21k.checkpoint.store import step_of
    from vit21k.training.context import Fork

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
    """Return the override that sets the teacher of a recipe."""
    return [] if address is None else [f"distill.teacher={json.dumps(local_copy(address))}"]


def _suggested_recipe(manifests: Path | None, init: str | None) -> str:
    """Return a recipe for *manifests* (None: unknown data) and this machine; print the reason.

    Raises:
        UsageError: It needs weights to start from, or there are some.
    """
    found = suggested_training(num_training_images(manifests) if manifests else None)
    if init or found.init:
        raise UsageError(
            "which recipe?",
            hint=f"for these images: `vit21k train {found.options}` ({found.why}); "
            "`vit21k recipes list` lists the others",
        )
    console.note(f"recipe {found.recipe}: {found.why}; `--recipe` selects another one")
    return found.recipe


def _load_recipe(stage: Stage | None, recipe: str | None, overrides: list[str]) -> "Recipe":
    from vit21k.recipe.load import load_recipe

    loaded = load_recipe(recipe or _STAGE_RECIPES[stage or "pretrain"], overrides)
    if stage is not None and loaded.stage != stage:
        raise UsageError(
            f"recipe `{recipe}` is for --stage {loaded.stage}, not {stage}",
            hint="omit --stage, or choose another recipe: `vit21k recipes list`",
        )
    return loaded


def _run_name(stage: str, recipe: str | None) -> str:
    return Path(recipe).stem if recipe else _STAGE_RECIPES[stage]


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of a cluster job."""

    name: Annotated[str, typer.Option(help="Name of the job.")] = "vit21k"
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs per node; 0: none.")] = 8
    processes_per_node: Annotated[
        int | None, typer.Option(min=1, help="Default: one per GPU, or 1.")
    ] = None
    cpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="Cores per node; default: 12 per process.")
    ] = None
    grace_seconds: Annotated[
        int, typer.Option(min=30, help="Time before the end at which training is asked to save.")
    ] = 300

    def job(self, arguments: Sequence[str]) -> "Job":
        """Return the job that runs `vit21k train` with *arguments*."""
        from vit21k.launch import Job

        processes = self.processes_per_node or self.gpus_per_node or 1
        return Job(
            name=self.name,
            num_nodes=self.nodes,
            gpus_per_node=self.gpus_per_node,
            processes_per_node=processes,
            cpus_per_node=self.cpus_per_node or 12 * processes,
            grace_seconds=self.grace_seconds,
            arguments=arguments,
        )


_TrainArguments = Annotated[
    list[str], typer.Argument(metavar="-- ARGUMENTS...", help="Arguments of `vit21k train`.")
]
_PrintOnly = Annotated[bool, typer.Option("--dry-run", help="Print the file; submit nothing.")]


def slurm_command(
    arguments: _TrainArguments,
    *,
    options: JobOptions,
    time_limit: Annotated[
        str, typer.Option("--time", metavar="LIMIT", help="Time limit in Slurm's format.")
    ] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="Default: the cluster's.")] = None,
    account: Annotated[str | None, typer.Option(help="Default: the user's.")] = None,
    setup: Annotated[
        str | None,
        typer.Option(metavar="SHELL", help="Command before training: modules, an environment."),
    ] = None,
    dry_run: _PrintOnly = False,
) -> None:
    """Submit training to Slurm, or print the batch script.

    Before the time limit training saves a checkpoint, the job is queued again, and resumes.

    [bold]Examples[/bold]

      vit21k launch slurm --nodes 4 --dry-run -- --stage pretrain > job.sh

      vit21k launch slurm --partition h200 --setup "source venv/bin/activate" -- --stage pretrain
    """
    from vit21k.launch import slurm_script

    script = slurm_script(
        options.job(arguments),
        time_limit=time_limit,
        partition=partition,
        account=account,
        setup=setup,
    )
    _print_or_submit(script, ["sbatch"], dry_run)


def k8s_command(
    arguments: _TrainArguments,
    image: Annotated[str, typer.Option(help="Image with vit21k, torch and bash.")],
    volume: Annotated[
        list[str] | None,
        typer.Option(metavar="CLAIM:PATH", help="Mount a volume claim at a path; repeatable."),
    ] = None,
    *,
    options: JobOptions,
    dry_run: _PrintOnly = False,
) -> None:
    """Submit training to Kubernetes as an Indexed Job, or print the manifest.

    When a pod is evicted, all of them save a checkpoint; they are restarted and resume.

    [bold]Examples[/bold]

      vit21k launch k8s --nodes 4 --image registry/vit21k:1 --dry-run -- --stage pretrain > job.yaml

      vit21k launch k8s --image registry/vit21k:1 --volume imagenet:/data -- --stage pretrain
    """
    from vit21k.launch import k8s_manifest

    manifest = k8s_manifest(options.job(arguments), image=image, volumes=_mounts(volume or []))
    _print_or_submit(manifest, ["kubectl", "create", "-f", "-"], dry_run)


def _mounts(volumes: list[str]) -> dict[str, str]:
    mounts = {}
    for volume in volumes:
        claim, colon, path = volume.partition(":")
        if not colon or not claim or not path.startswith("/"):
            raise UsageError(
                f"cannot read the volume `{volume}`", hint="write it as CLAIM:/path/in/the/pod"
            )
        mounts[claim] = path
    return mounts


def _print_or_submit(text: str, command: list[str], dry_run: bool) -> None:
    """Print *text*, or pass it to the cluster's submit program.

    Raises:
        MissingExtraError: The program is not installed.
        Vit21kError: It refused the job.
    """
    if dry_run:
        console.print_lines(text)
        return
    program = shutil.which(command[0])
    if program is None:
        raise MissingExtraError(
            f"`{command[0]}` is not installed on this machine",
            hint="print the file with --dry-run, and submit it on the cluster",
        )
    done = subprocess.run(
        [program, *command[1:]], input=text, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise Vit21kError(f"`{' '.join(command)}` refused the job: {done.stderr.strip()}")
    console.done(f"launch: {done.stdout.strip()}")
