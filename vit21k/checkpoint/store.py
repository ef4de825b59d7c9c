"""Checkpoints of a run: written atomically, checksummed, found again."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import xxhash
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.atomic import atomic_folder, write_atomic
from vit21k.checkpoint.model_folder import WEIGHTS, read_tensors, write_model_folder, write_tensors
from vit21k.distributed import shard_like
from vit21k.errors import CheckpointError


class BackgroundWriter:
    """A thread that writes.

    The caller waits for the write before (`wait`), copies what must not change, and submits it: at
    most one copy exists.  An error of a write is raised by the next call of any method, and at the
    end of the block.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True)  # after an error, too, the write is finished
        if error is None:
            self.wait()

    def submit(self, write: Callable[[], object]) -> None:
        """Start *write* after the write before it."""
        self.wait()
        self._pending = self._pool.submit(write)

    def check(self) -> None:
        """Raise the error of a write that has failed; do not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: The disk is full or failing.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


LATEST, BEST, BEST_EMA = "latest", "best", "best-ema"
POINTERS = (LATEST, BEST, BEST_EMA)
"""Files in the folder of checkpoints that name one of them."""
EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
VERSION = 1
_CHECKSUM = "seal"
_RECORDS = ("metrics.jsonl", "run.json", "recipe.yaml")
_NAME = re.compile(r"step-(\d{8,})(\.\d+)?")


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint; -1 if it is none."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def in_order(folder: Path) -> list[Path]:
    """Return the checkpoints in *folder*, newest first."""
    paths = [path for path in folder.glob("step-*") if step_of(path) >= 0]
    return sorted(paths, key=lambda path: (step_of(path), path.name), reverse=True)


def follow(pointer: Path) -> Path | None:
    """Return the path in the file *pointer*, which may not exist; None if there is none in it."""
    try:
        text = pointer.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    first = Path(text).parts[:1]
    return pointer.parent / text if first and _NAME.fullmatch(first[0]) else None


def candidates(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints in *folder* in the order to try them.

    First the one in `latest`, then earlier ones.  Later ones come last: they are complete, but the
    run was killed before it updated `latest`, or they are from another try.
    """
    paths = in_order(folder)
    latest = follow(folder / LATEST)
    if latest not in paths:
        yield from paths
        return
    yield latest
    yield from (path for path in paths if path != latest and step_of(path) <= step_of(latest))
    yield from (path for path in paths if step_of(path) > step_of(latest))


def newest(folder: Path) -> Path | None:
    """Return the checkpoint to resume from, whether or not it is intact."""
    return next(candidates(folder), None)


def take_back(folder: Path, step: int) -> None:
    """Remove the checkpoints of *step*, whose weights are useless, from those to resume from.

    `latest` names the one before them again; they are renamed to ``diverged-<step>``, unless they
    are among the best.
    """
    paths = in_order(folder)
    bad = [path for path in paths if step_of(path) == step]
    earlier = [path for path in paths if step_of(path) < step]
    if earlier:
        write_atomic(folder / LATEST, f"{earlier[0].name}\n".encode())
        bad = [path for path in bad if path not in _best(folder)]
    else:
        (folder / LATEST).unlink(missing_ok=True)
    for path in bad:
        aside = folder / path.name.replace("step-", "diverged-")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)


def set_run_aside(run_dir: Path) -> Path | None:
    """Move the checkpoints of *run_dir*, with log and recipe, to a folder inside; return it.

    None if there are no checkpoints.  A kill leaves the run as it was, or moved with its log: the
    other files are copied first, and the folder of checkpoints is renamed last.
    """
    folder = run_dir / "checkpoints"
    if not in_order(folder):
        return None
    number = 1
    while (aside := run_dir / f"previous-{number}").joinpath(folder.name).exists():
        number += 1
    aside.mkdir(exist_ok=True)
    for name in _RECORDS:
        if (run_dir / name).is_file():
            write_atomic(aside / name, (run_dir / name).read_bytes())
    folder.rename(aside / folder.name)
    return aside


def prune(folder: Path, newest: Path, keep_last: int) -> None:
    """Remove the checkpoints before *newest*, except for the last *keep_last* and the best."""
    paths = [path for path in in_order(folder) if path != newest]
    earlier = [path for path in paths if step_of(path) < step_of(newest)]
    same_step = [path for path in paths if step_of(path) == step_of(newest)]
    old = [*same_step, *earlier[max(keep_last, 1) - 1 :]]
    _remove(folder, [path for path in old if path not in _best(folder)])


def _best(folder: Path) -> set[Path]:
    """Return the checkpoints that are the best ones."""
    named = filter(None, (follow(folder / name) for name in (BEST, BEST_EMA)))
    return {folder / path.relative_to(folder).parts[0] for path in named}


def _remove(folder: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        # Renamed first: a partial checkpoint must not look like a damaged one.
        shutil.rmtree(path.rename(folder / f".{path.name}.deleted"))


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write *state* into *folder*, with the digests of all files there and a checksum of itself."""
    digests = {path.name: _digest_of(path) for path in sorted(folder.iterdir())}
    content = json.loads(json.dumps({**state, "version": VERSION, "files": digests}))
    text = json.dumps({**content, _CHECKSUM: _checksum(content)}, indent=2) + "\n"
    (folder / STATE).write_text(text, encoding="utf-8")


def _read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, with "version" and "files"."""
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        checksum = content.pop(_CHECKSUM)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"`{folder}` is not a checkpoint: it has no {STATE}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        checksum, content = "", {}
    if checksum != _checksum(content):
        raise CheckpointError(
            f"checkpoint `{folder}` is damaged: `{STATE}` is not what was written"
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            f"checkpoint `{folder}` was written by a later vit21k "
            f"(layout {content['version']}; this one reads {VERSION})",
            hint="upgrade vit21k",
        )
    return content


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def optimizers_to_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return the state of *optimizers*, keyed ``<slot>/<parameter name>``.

    The tensors are the optimizers' own, not copies.

    Args:
        model: Owns the parameters that the optimizers update.
        optimizers: Together they update a parameter at most once.

    Raises:
        TypeError: A state is neither a tensor nor None; it could not be restored.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    tensors = {}
    for optimizer in optimizers:
        for param, slots in optimizer.state.items():
            for slot, value in slots.items():
                if value is None:
                    continue
                if not isinstance(value, Tensor):
                    raise TypeError(f"{type(optimizer).__name__} keeps `{slot}` as {type(value)}")
                tensors[f"{slot}/{names[id(param)]}"] = value
    return tensors


def tensors_to_optimizers(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizers: Sequence[Optimizer]
) -> None:
    """Restore what `optimizers_to_tensors` returned.

    Args:
        tensors: The complete state; empty before the first update.
        model: With the same parameters, on their device.
        optimizers: Of the same kinds over the same parameters; changed in place.

    Raises:
        CheckpointError: The state is that of other parameters.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        states.setdefault(name, {})[slot] = tensor
    names = {id(param): name for name, param in model.named_parameters()}
    params = [[p for g in optimizer.param_groups for p in g["params"]] for optimizer in optimizers]
    _check_state(states, [{names[id(p)]: p for p in its} for its in params])
    for optimizer, its in zip(optimizers, params, strict=True):
        # torch's own loader moves step counts and moments to the devices its kernels expect.
        saved: dict[str, Any] = optimizer.state_dict()
        saved["state"] = {
            index: {s: shard_like(t, param) for s, t in states[names[id(param)]].items()}
            for index, param in enumerate(its)
            if names[id(param)] in states
        }
        optimizer.load_state_dict(saved)
        # It also casts moments to the type of the parameter.
        for index, slots in saved["state"].items():
            for slot, tensor in slots.items():
                if tensor.ndim:
                    own = optimizer.state[its[index]]
                    own[slot] = own[slot].to(tensor.dtype)


def _check_state(
    states: Mapping[str, Mapping[str, Tensor]], updated: Sequence[Mapping[str, Tensor]]
) -> None:
    """Raise unless *states* are those of all parameters that the optimizers *updated*, or empty."""
    params = {name: param for its in updated for name, param in its.items()}
    problem = None
    if any(len({frozenset(states[name]) for name in its if name in states}) > 1 for its in updated):
        problem = "is not of one kind for all parameters"
    elif unknown := sorted(states.keys() - params.keys()):
        problem = f"has `{unknown[0]}`, which is not updated here"
    elif states and (missing := sorted(params.keys() - states.keys())):
        problem = f"lacks {len(missing)} of {len(params)} parameters, `{missing[0]}` first"
    for name, slots in {} if problem else states.items():
        for slot, tensor in slots.items():
            if tensor.ndim and tensor.shape != params[name].shape:
                shapes = tuple(tensor.shape), tuple(params[name].shape)
                problem = f"`{slot}` of `{name}` has shape {shapes[0]}, the parameter {shapes[1]}"
    if problem:
        raise CheckpointError(f"the state of the optimizer {problem}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: Its folder.
        state: Content of its ``state.json``: "step" and what the caller saved.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer updates made."""
        return int(self.state["step"])

    def model_tensors(self) -> dict[str, Tensor]:
        """Return the model's `state_dict`, on the CPU."""
        return read_tensors(self.path / WEIGHTS)

    def ema_tensors(self) -> dict[str, Tensor] | None:
        """Return the model's `state_dict` with averaged weights; None if there are none."""
        path = self.path / EMA
        return read_tensors(path) if path.exists() else None

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return what `optimizers_to_tensors` returned, on the CPU."""
        return read_tensors(self.path / OPTIMIZER)


class Found(NamedTuple):
    """What `find_latest` found."""

    checkpoint: Checkpoint | None
    """The newest intact one; None: the run has none yet."""
    warnings: list[str]
    """A sentence on each newer one that is damaged."""


def save_checkpoint(  # noqa: PLR0913 (each is a plain value)
    run_dir: Path,
    step: int,
    *,
    model_state: Mapping[str, Tensor],
    model_config: Mapping[str, Any],
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep_last: int,
    ema_state: Mapping[str, Tensor] | None = None,
    best: Collection[str] = (),
) -> Path:
    """Write a checkpoint, make it the latest, remove old ones, and return its folder.

    A kill at any moment leaves the previous latest checkpoint or this one.  An intact, equal
    checkpoint of the same step is kept instead.  One process calls this, under the run's lock.

    Args:
        run_dir: The run.
        step: Optimizer updates made.
        model_state: The model's `state_dict`; *ema_state*: with averaged weights.
        model_config: From `model_config`.
        optimizer_state: From `optimizers_to_tensors`.
        state: Everything else that a resume needs, as JSON values.
        keep_last: Checkpoints that stay, this one included; those of later steps all stay.
        ema_state: See *model_state*.
        best: Names of the pointers that shall name this checkpoint.

    Raises:
        OSError: The disk is full or failing; the previous checkpoint is unchanged.
    """
    folder = run_dir / "checkpoints"
    _sweep(folder)
    path = _free_path(folder, step)
    with atomic_folder(path) as partial:
        write_model_folder(partial, model_state, model_config)
        write_tensors(partial / OPTIMIZER, optimizer_state)
        if ema_state is not None:
            write_tensors(partial / EMA, ema_state)
        write_state(partial, {**state, "step": step})
    path = _first_equal(folder, path)
    for name in best:
        inside = f"{path.name}/{EMA}" if name == BEST_EMA else path.name
        write_atomic(folder / name, f"{inside}\n".encode())
    write_atomic(folder / LATEST, f"{path.name}\n".encode())
    prune(folder, path, keep_last)
    return path


def _sweep(folder: Path) -> None:
    """Remove partial checkpoints, which a killed process was writing or deleting."""
    for pattern in (".step-*.deleted", ".step-*.partial"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _free_path(folder: Path, step: int) -> Path:
    """Return the path of a new checkpoint, with ``.1`` and so on if there is one of its step."""
    path, number = folder / f"step-{step:08d}", 0
    while path.exists():
        number += 1
        path = folder / f"step-{step:08d}.{number}"
    return path


def _first_equal(folder: Path, path: Path) -> Path:
    """Return *path*, or another intact checkpoint with its content; then *path* is removed."""
    for other in in_order(folder):
        if step_of(other) != step_of(path) or other == path:
            continue
        with suppress(CheckpointError):
            if load_checkpoint(other).state == _read_state(path):
                _remove(folder, [path])
                return other
    return path


def find_latest(run_dir: Path, *, only: Collection[str] | None = None) -> Found:
    """Return the newest intact checkpoint of *run_dir*.

    Args:
        run_dir: The run.
        only: The files that must be intact; None: all of them.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    warnings: list[str] = []
    for path in candidates(run_dir / "checkpoints"):
        try:
            return Found(load_checkpoint(path, only=only), warnings)
        except CheckpointError as error:
            warnings.append(error.message)
    if warnings:
        raise CheckpointError(
            f"`{run_dir}` has no checkpoint that can be used: {'; '.join(warnings)}",
            hint="restore one from a copy, or start over with `vit21k train --fresh`",
        )
    return Found(None, [])


def load_checkpoint(path: Path, *, only: Collection[str] | None = None) -> Checkpoint:
    """Open the checkpoint in the folder *path*, after a comparison of files with their digests.

    Args:
        path: ``<run>/checkpoints/step-...``.
        only: The files to compare; None: all of them.

    Raises:
        CheckpointError: It is missing, damaged, or of a later version; the hint names others.
    """
    try:
        state = _read_state(path)
        for name, digest in state["files"].items():
            if only is None or name in only:
                _verify(path / name, digest)
    except CheckpointError as error:
        others = [other.name for other in in_order(path.parent) if other.name != path.name]
        hint = f"others of this run: {', '.join(others)}" if others else error.hint
        raise CheckpointError(error.message, hint=hint) from error
    return Checkpoint(path, state)


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"checkpoint `{path.parent}` is damaged: `{path.name}` is missing")
    if _digest_of(path) != digest:
        raise CheckpointError(
            f"checkpoint `{path.parent}` is damaged: `{path.name}` is not what was written"
        )
