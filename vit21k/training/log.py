"""Log of a run: metrics.jsonl, meters, and reports of non-finite losses."""

import json
import math
import resource
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from vit21k import __version__
from vit21k.atomic import write_atomic
from vit21k.checkpoint.store import BackgroundWriter, newest, step_of, take_back
from vit21k.data.dataset import ImageRows
from vit21k.data.loader import Batch
from vit21k.device import device_name, matmul_flops
from vit21k.distributed import unsharded
from vit21k.errors import NonFiniteLossError
from vit21k.models.cost import num_params, train_flops_per_image
from vit21k.optim.schedule import is_due
from vit21k.runs.history import write_facts
from vit21k.training.context import Progress, RunContext
from vit21k.training.reporter import Reporter
from vit21k.training.sinks import DetachedSink, LoggedRun, close_sinks, open_sinks

_PEAK_SIDES = {"cpu": 512, "cuda": 8192}  # of the matrices whose product is the peak
_PEAK_SECONDS = 0.1


@dataclass(kw_only=True)
class Meters:
    """Measurements between two lines of the log.

    Attributes:
        model: For the norm of its weights.
        device: For its memory.
        flops_per_image: Floating-point operations of a training step for each image, forward and
            backward, without recomputation.
        peak_flops: Operations a second of all devices of the run together.
    """

    model: nn.Module
    device: torch.device
    flops_per_image: float
    peak_flops: float
    _waited: float = field(default=0.0, init=False)

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield *batches*, and measure the time that the step waits for them."""
        while True:
            started_at = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - started_at
            if batch is None:
                return
            yield batch

    def read(self, *, num_images: int, seconds: float) -> dict[str, float]:
        """Return the values of the last *seconds*, and start again; every process must call it.

        Returns:
            ``weight_norm``: L2 norm of all parameters; ``mfu``: rate of the model's operations as
            a fraction of the peak, over all processes; ``data_wait``: fraction of the time that
            this process waited for images; ``used_memory_bytes``: see `used_memory_bytes`.
        """
        waited, self._waited = self._waited, 0.0
        rate = num_images / seconds
        return {
            "weight_norm": norm_of(self.model),
            "mfu": rate * self.flops_per_image / self.peak_flops,
            "data_wait": min(1.0, waited / seconds),
            "memory_bytes": used_memory_bytes(self.device),
        }


def norm_of(model: nn.Module) -> float:
    """Return the L2 norm of all parameters together; all processes call it if they are sharded."""
    return float(
        unsharded(nn.utils.get_total_norm([param.detach() for param in model.parameters()]))
    )


def used_memory_bytes(device: torch.device) -> int:
    """Return the peak allocation on a CUDA device; otherwise the resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # not Linux
        return 0
    return int(pages) * resource.getpagesize()


FILE_NAME = "metrics.jsonl"


class RunLog:
    """Averages the losses between two lines, writes the lines, and passes them on.

    A step has one line in ``metrics.jsonl``, even if the run was killed: on a resume, lines after
    the checkpoint are removed.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        progress: Progress,
        total_steps: int,
        every_steps: int,
        peak_lr: float,
        reporter: Reporter | None,
        meters: Meters | None = None,
        sinks: Sequence[DetachedSink] = (),
    ) -> None:
        """Open the log.

        Args:
            run_dir: Folder of ``metrics.jsonl``.
            progress: Of the run so far.
            total_steps: Of the run.
            every_steps: Steps between lines.
            peak_lr: Learning rate at a factor of 1.
            reporter: Reports every line; None: this process writes nothing.
            meters: Other measurements, in every process.
            sinks: Receive every line; closed with the log.
        """
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._peak_lr = peak_lr
        self._reporter = reporter
        self._meters = meters
        self._sinks = sinks
        self._seconds_before = 0.0
        self._started_step = progress.step
        self._started_at = time.monotonic()
        self._loss_sum, self._num_losses = progress.loss_sum, progress.num_losses
        self._window_at = self._started_at
        self._window_images = progress.images_seen
        self._file: IO[str] | None = None
        if reporter is not None:
            path = run_dir / FILE_NAME
            self._seconds_before = _take_back(path, after_step=progress.step)
            self._file = path.open("a", encoding="utf-8")

    def log_step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Log a step: ``loss``, ``lr_factor``, ``grad_norm``, ``num_skipped``, ``num_replaced``.

        Sums for the next line are stored in *progress*: a resumed run has the same mean.
        """
        step, images_seen = progress.step, progress.images_seen
        is_line = is_due(step, every_steps=self._every_steps, total_steps=self._total_steps)
        if math.isfinite(metrics["loss"]):  # an update without any image has none
            self._loss_sum += metrics["loss"]
            self._num_losses += 1
        mean_loss = self._loss_sum / self._num_losses if self._num_losses else math.nan
        if is_line:
            self._loss_sum, self._num_losses = 0.0, 0
        progress.loss_sum, progress.num_losses = self._loss_sum, self._num_losses
        if not is_line:
            return
        now = time.monotonic()
        seconds = max(now - self._window_at, 1e-9)
        num_images = images_seen - self._window_images
        line = {
            "step": step,
            "images_seen": images_seen,
            "loss": mean_loss,
            "lr": self._peak_lr * metrics["lr_factor"],
            "grad_norm": metrics["grad_norm"],
            "images_per_second": round(num_images / seconds, 2),
            **(self._meters.read(num_images=num_images, seconds=seconds) if self._meters else {}),
            "num_skipped": metrics["num_skipped"],
            "num_replaced": metrics["num_replaced"],
        }
        self._window_at, self._window_images = now, images_seen
        self._write(line, self._seconds_left(step, now))

    def log_evaluation(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an evaluation; their names begin with the split."""
        seconds_left = self._seconds_left(progress.step, time.monotonic())
        self._write({"step": progress.step, **metrics}, seconds_left)

    def close(self) -> None:
        """Close the file and the sinks."""
        if self._file is not None:
            self._file.close()
        close_sinks(self._sinks)

    def _write(self, line: Mapping[str, Any], eta_seconds: float) -> None:
        if self._file is None or self._reporter is None:
            return
        seconds = self._seconds_before + time.monotonic() - self._started_at
        line = {**line, "seconds": round(seconds, 2), "eta_seconds": round(eta_seconds, 1)}
        self._file.write(json.dumps({name: _finite(line[name]) for name in line}) + "\n")
        self._file.flush()
        self._reporter.line({**line, "total_steps": self._total_steps})
        for sink in self._sinks:
            sink.write(line)

    def _seconds_left(self, step: int, now: float) -> float:
        seconds_a_step = (now - self._started_at) / max(step - self._started_step, 1)
        return (self._total_steps - step) * seconds_a_step


def _finite(value: Any) -> Any:
    """Return *value*, or None if JSON has no number for it, as the norm of a skipped update."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _take_back(path: Path, *, after_step: int) -> float:
    """Remove lines of steps after *after_step*, and a truncated one; return the seconds so far."""
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields["step"] <= after_step and line.endswith(b"\n"):
            kept.append(line)
            seconds = fields.get("seconds", seconds)
    write_atomic(path, b"".join(kept))
    return seconds


_NUM_NAMED = 3


@dataclass
class StepLosses:
    """The losses of the micro-batches of the current step.

    They stay on their device and are not read, so that no step waits for them.

    Attributes:
        dataset: The training images.
        run_dir: Folder of the list of images.
        rank: Index of this process; each lists its own images.
    """

    dataset: ImageRows
    run_dir: Path
    rank: int = 0
    _step: int = field(default=0, init=False)
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    def start_step(self, step: int) -> None:
        """Forget the step before; *step* updates are made."""
        self._step = step
        self._seen.clear()

    def note(self, batch: Batch, loss: Tensor) -> None:
        """Keep the *loss* of a micro-batch."""
        self._seen.append((batch.rows_B, loss.detach()))

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Add the images of the step to a `NonFiniteLossError` of the block."""
        try:
            yield
        except NonFiniteLossError as error:
            raise self._explained(error) from error

    def _explained(self, error: NonFiniteLossError) -> NonFiniteLossError:
        bad = [rows_B for rows_B, loss in self._seen if not bool(torch.isfinite(loss).all())]
        paths = [self.dataset.path(int(row)) for rows_B in bad for row in rows_B]
        if not paths:
            return error
        path = self.run_dir / f"non-finite-step-{self._step + 1}-rank-{self.rank}.txt"
        write_atomic(path, "".join(f"{name}\n" for name in paths).encode())
        named = ", ".join(f"`{name}`" for name in paths[:_NUM_NAMED])
        more = f" and {len(paths) - _NUM_NAMED:,} more" if len(paths) > _NUM_NAMED else ""
        return NonFiniteLossError(
            f"{error.message}\n{len(bad)} of this process's {len(self._seen)} micro-batches had "
            f"such a loss; their {len(paths):,} images are listed in `{path}`: {named}{more}",
            hint=f"look at grad_norm in `{self.run_dir / 'metrics.jsonl'}` and at the images"
            + (_ALL_HINT if len(bad) == len(self._seen) > 1 else "")
            + f"; {error.hint}",
        )


@contextmanager
def explaining_divergence(
    run: RunContext,
    progress: Progress,
    writer: BackgroundWriter,
    origin: Mapping[str, Any] | None,
) -> Iterator[None]:
    """Make the last good checkpoint the latest, and add a command that continues from it.

    A checkpoint of the weights that gave the loss is not good: it is removed from the list.

    Raises:
        NonFiniteLossError: Instead of that of the block.
    """
    try:
        yield
    except NonFiniteLossError as error:
        folder = run.options.run_dir / "checkpoints"
        writer.wait()
        if run.world.rank == 0:
            take_back(folder, progress.step)
        run.world.barrier()
        good = newest(folder)
        last = "there is no good checkpoint"
        if good is not None:
            last = f"the last good checkpoint is that of step {step_of(good):,}"
        command = _advice(run, origin, None if good is None else step_of(good))
        raise NonFiniteLossError(
            f"{error.message}; {last}", hint=f"{error.hint}; in a new run:\n  {command}"
        ) from error


def _advice(run: RunContext, origin: Mapping[str, Any] | None, step: int | None) -> str:
    """Return a command that continues from the last good state with a lower learning rate."""
    options, optim, schedule = run.options, run.recipe.optim, run.recipe.schedule
    words = ["vit21k", "train", "--recipe", str(options.run_dir / "recipe.yaml")]
    words += ["--manifests", str(options.manifests)]
    words += [] if options.root is None else ["--root", str(options.root)]
    words += ["--cache", str(options.cache.folder)] if options.cache else []
    if step is not None:
        words += ["--resume-from", f"{options.run_dir}:{step}"]
    elif origin is not None and origin["kind"] == "fork":
        words += ["--resume-from", f"{origin['source']}:{origin['step']}"]
    elif origin is not None:
        words += ["--init", origin["source"]]
        words += [] if origin["head"] == "same-classes" else ["--head", origin["head"]]
    lr = optim.lr / 2
    changes = {"optim.lr": lr}
    for name in ("end_lr", "warmup_start_lr"):
        if getattr(schedule, name) > lr:
            changes[f"schedule.{name}"] = getattr(schedule, name) / 2
    if optim.grad_clip_norm is None:
        changes["optim.grad_clip_norm"] = 1.0
    for name, value in changes.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join([*words, "--run-dir", str(_free_run(options.run_dir))])


def _free_run(run_dir: Path) -> Path:
    """Return an unused name of a run."""
    number = 2
    while (path := run_dir.with_name(f"{run_dir.name}-{number}")).exists():
        number += 1
    return path


_ALL_HINT = " (all micro-batches are affected: rather the weights than an image)"


def build_meters(run: RunContext, model: nn.Module) -> Meters:
    """Build the meters of *run*, and report the peak that MFU is relative to."""
    return Meters(
        model=model,
        device=run.device,
        flops_per_image=float(train_flops_per_image(run.args)),
        peak_flops=_peak_flops(run) * run.world.world_size,
    )


def write_run_facts(run: RunContext, meters: Meters, origin: Mapping[str, Any] | None) -> None:
    """Write ``run.json``, on the first process."""
    if run.world.rank != 0:
        return
    write_facts(
        run.options.run_dir,
        {
            "recipe": run.options.recipe_name,
            "total_steps": run.schedule.total_steps,
            "global_batch_size": run.recipe.data.global_batch_size,
            "num_train_images": len(run.data.train),
            "num_params": num_params(run.args),
            "flops_per_image": meters.flops_per_image,
            "peak_flops": meters.peak_flops,
            "device": device_name(run.device),
            "world_size": run.world.world_size,
            "origin": origin,
            "vit21k": __version__,
            "torch": torch.__version__,
        },
    )


def open_log(run: RunContext, progress: Progress, meters: Meters) -> RunLog:
    """Open ``metrics.jsonl`` and the sinks; to be closed."""
    is_first = run.world.rank == 0
    logged = LoggedRun(
        run_dir=run.options.run_dir,
        recipe=run.recipe.model_dump(mode="json"),
        resumed_step=progress.step,
        warn=run.reporter.warn,
    )
    return RunLog(
        run.options.run_dir,
        progress=progress,
        total_steps=run.schedule.total_steps,
        every_steps=run.recipe.run.log_every_steps,
        peak_lr=run.recipe.optim.lr,
        reporter=run.reporter if is_first else None,
        meters=meters,
        sinks=open_sinks(run.options.log_to, logged) if is_first else (),
    )


def _peak_flops(run: RunContext) -> float:
    """Return the peak of one device for MFU; report it if it is measured."""
    if run.options.peak_flops is not None:
        return run.options.peak_flops
    precision, device = run.recipe.products_in, run.device
    side = _PEAK_SIDES.get(device.type, _PEAK_SIDES["cuda"])
    peak = matmul_flops(device, precision, shape=(side, side, side), seconds=_PEAK_SECONDS)
    run.reporter.note(
        f"MFU is against {peak / 1e12:.3g} TFLOP/s, what a {precision} product of two {side} x "
        f"{side} matrices reaches here"
    )
    return peak
