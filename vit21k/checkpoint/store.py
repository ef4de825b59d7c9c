"""Checkpoints of a run: written atomically, hashed, found again."""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import xxhash
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.atomic import atomic_folder, write_atomic
from vit21k.checkpoint.model_folder import WEIGHTS, read_tensors, write_model_folder, write_tensors
from vit21k.distributed import spread_like
from vit21k.errors import CheckpointError


class BackgroundWriter:
    """A thread that writes.

    Whoever has something to write waits until what was written before is on disk (`wait`), copies
    what must not change meanwhile, and submits it: at most one copy is ever held.  What went wrong
    is raised by the next call of any method, and when the block ends.
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
        # Also on the way out of an error what is being written is finished.
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()

    def submit(self, write: Callable[[], object]) -> None:
        """Begin *write*, once what was submitted before is done."""
        self.wait()
        self._pending = self._pool.submit(write)

    def check(self) -> None:
        """Raise what went wrong, if something did; does not wait."""
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


LATEST = "latest"
BEST = "best"
BEST_EMA = "best-ema"
POINTERS = (LATEST, BEST, BEST_EMA)
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
    """Return what *pointer* names, which may not exist; None if it names nothing."""
    try:
        text = pointer.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    first = Path(text).parts[:1]
    return pointer.parent / text if first and _NAME.fullmatch(first[0]) else None


def candidates(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints in *folder* in the order to try them.

    First what `latest` names, then earlier ones.  Later ones come last: they are whole, but the
    run was killed before it could say so, or they are left from another try.
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
    """Return the checkpoint to resume from, unless it turns out to be damaged."""
    return next(candidates(folder), None)


def take_back(folder: Path, step: int) -> None:
    """Take back the checkpoints of *step*: what they hold turned out to be useless.

    `latest` names the one before them again; they are kept as ``diverged-<step>``, unless they are
    among the best.
    """
    bad = [path for path in in_order(folder) if step_of(path) == step]
    earlier = [path for path in in_order(folder) if step_of(path) < step]
    if earlier:
        write_atomic(folder / LATEST, f"{earlier[0].name}\n".encode())
    named = {_folder_named_by(folder / name) for name in (BEST, BEST_EMA)} if earlier else set()
    for path in bad:
        if path in named:
            continue
        aside = folder / path.name.replace("step-", "diverged-")
        if aside.exists():
            shutil.rmtree(aside)
        path.rename(aside)
    if not earlier:
        (folder / LATEST).unlink(missing_ok=True)


def set_run_aside(run_dir: Path) -> Path | None:
    """Move the checkpoints of *run_dir*, with its log and recipe, to a folder inside; return it.

    None if there are no checkpoints.  A kill leaves the run as it was, or moved with its log: what
    is beside the checkpoints is copied first, and their folder is renamed last.
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


def free_path(folder: Path, step: int) -> Path:
    """Return a name for a new checkpoint; ``.1`` and so on if another of its step is there."""
    path = folder / f"step-{step:08d}"
    number = 0
    while path.exists():
        number += 1
        path = folder / f"step-{step:08d}.{number}"
    return path


def prune(folder: Path, newest: Path, keep_last: int) -> None:
    """Remove the checkpoints before *newest* but the last *keep_last* and those that are best."""
    earlier = [path for path in in_order(folder) if step_of(path) < step_of(newest)]
    same_step = [
        path for path in in_order(folder) if step_of(path) == step_of(newest) and path != newest
    ]
    named = {_folder_named_by(folder / name) for name in (BEST, BEST_EMA)}
    old = [*same_step, *earlier[max(keep_last, 1) - 1 :]]
    _remove(folder, [path for path in old if path not in named])


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written or half deleted."""
    for pattern in (".step-*.deleted", ".step-*.partial"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _folder_named_by(pointer: Path) -> Path | None:
    named = follow(pointer)
    return None if named is None else pointer.parent / named.relative_to(pointer.parent).parts[0]


def _remove(folder: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        # Renamed first: half a checkpoint must not look like a damaged one.
        gone = path.rename(folder / f".{path.name}.deleted")
        shutil.rmtree(gone)


STATE = "state.json"
VERSION = 1
_CHUNK_BYTES = 1 << 20


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return *state* as JSON gives it back: tuples as lists, keys as text."""
    copy: dict[str, Any] = json.loads(json.dumps(state))
    return copy


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write *state*, a digest of every file in *folder*, and one of itself, into *folder*."""
    digests = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    content = plain({**state, "version": VERSION, "files": digests})
    text = json.dumps({**content, "seal": _seal(content)}, indent=2) + "\n"
    (folder / STATE).write_text(text, encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, with "version" and "files".

    Raises:
        CheckpointError: It is missing, damaged, or of a later version.
    """
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        seal = content.pop("seal")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"`{folder}` is not a checkpoint: it has no {STATE}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        seal, content = "", {}
    if seal != _seal(content):
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


def digest_of(path: Path) -> str:
    """Return the xxh3_128 of a file, in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
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
    """Put back what `optimizers_to_tensors` returned.

    Args:
        tensors: The state, whole; empty before the first update.
        model: Has the same parameters as then; its parameters are on their device.
        optimizers: Of the same kinds over the same parameters; changed in place.

    Raises:
        CheckpointError: The state is that of other parameters.
    """
    states = _by_parameter(tensors)
    _check(states, model, optimizers)
    names = {id(param): name for name, param in model.named_parameters()}
    for optimizer in optimizers:
        # torch's own loader places a step count and a moment where its kernels expect them.
        saved: dict[str, Any] = optimizer.state_dict()
        params = [param for group in optimizer.param_groups for param in group["params"]]
        saved["state"] = {
            index: _spread(states[names[id(param)]], param)
            for index, param in enumerate(params)
            if names[id(param)] in states
        }
        optimizer.load_state_dict(saved)
        _restore_dtypes(optimizer, saved["state"], params)


def _spread(slots: Mapping[str, Tensor], param: Tensor) -> dict[str, Tensor]:
    return {slot: spread_like(tensor, param) for slot, tensor in slots.items()}


def _restore_dtypes(
    optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]], params: Sequence[Tensor]
) -> None:
    """Give moments the type they were saved in: torch's loader casts them to the parameter's."""
    for index, slots in states.items():
        mine = optimizer.state[params[index]]
        for slot, tensor in slots.items():
            if tensor.ndim:
                mine[slot] = mine[slot].to(tensor.dtype)


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        states.setdefault(name, {})[slot] = tensor
    return states


def _check(
    states: Mapping[str, Mapping[str, Tensor]], model: nn.Module, optimizers: Sequence[Optimizer]
) -> None:
    """Raise unless *states* are those of all updated parameters, or of none."""
    names = {id(param): name for name, param in model.named_parameters()}
    updated: set[str] = set()
    for optimizer in optimizers:
        mine = [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
        updated.update(mine)
        if len({frozenset(states[name]) for name in mine if name in states}) > 1:
            raise CheckpointError("the optimizer's state is not of one kind for all parameters")
    if unknown := sorted(states.keys() - updated):
        raise CheckpointError(
            f"the optimizer's state has `{unknown[0]}`, which is not updated here"
        )
    if states and (missing := sorted(updated - states.keys())):
        raise CheckpointError(
            f"the optimizer's state lacks {len(missing)} of {len(updated)} parameters, "
            f"`{missing[0]}` first"
        )
    for name, slots in states.items():
        _check_shapes(name, slots, model.get_parameter(name))


def _check_shapes(name: str, slots: Mapping[str, Tensor], param: Tensor) -> None:
    for slot, tensor in slots.items():
        if tensor.ndim and tensor.shape != param.shape:
            raise CheckpointError(
                f"the optimizer's `{slot}` of `{name}` has shape {tuple(tensor.shape)}, "
                f"the parameter {tuple(param.shape)}"
            )


EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"
_OWN_KEYS = ("version", "files")


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
    """The newest that is whole; None: the run has none yet."""
    warnings: list[str]
    """Newer ones that are damaged, each in a sentence."""


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
    """Write a checkpoint, make it the latest, and remove old ones.

    A kill at any moment leaves the previous latest checkpoint or this one.  A checkpoint of the
    same step that is whole and equal is kept as it is.  One process calls this, under the run's
    lock.

    Args:
        run_dir: The run.
        step: Optimizer updates made.
        model_state: The model's `state_dict`.
        model_config: From `model_config`.
        optimizer_state: From `optimizers_to_tensors`.
        state: Whatever else a resume needs, as JSON values.
        keep_last: How many checkpoints stay, this one included; of later steps than this one,
            which another try of the run left, none is removed.
        ema_state: The model's `state_dict` with averaged weights, if there are any.
        best: Pointers of the best checkpoints that shall name this one.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: The disk is full or failing; the previous checkpoint is unchanged.
    """
    folder = run_dir / "checkpoints"
    sweep(folder)
    state = plain({**state, "step": step})
    path = _equal_checkpoint(folder, model_state, optimizer_state, ema_state, state)
    if path is None:
        path = free_path(folder, step)
        with atomic_folder(path) as partial:
            write_model_folder(partial, model_state, model_config)
            write_tensors(partial / OPTIMIZER, optimizer_state)
            if ema_state is not None:
                write_tensors(partial / EMA, ema_state)
            write_state(partial, state)
    for name in best:
        inside = f"{path.name}/{EMA}" if name == BEST_EMA else path.name
        write_atomic(folder / name, f"{inside}\n".encode())
    write_atomic(folder / LATEST, f"{path.name}\n".encode())
    prune(folder, path, keep_last)
    return path


def find_latest(run_dir: Path, *, only: Collection[str] | None = None) -> Found:
    """Return the newest checkpoint of *run_dir* that is whole.

    Args:
        run_dir: The run.
        only: The files that must be whole; None: all of them.

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


def load_checkpoint(
    path: Path, *, verify: bool = True, only: Collection[str] | None = None
) -> Checkpoint:
    """Open the checkpoint in the folder *path*.

    Args:
        path: ``<run>/checkpoints/step-...``.
        verify: Compare files with their digests.
        only: The files to compare; None: all of them.

    Raises:
        CheckpointError: It is missing, damaged, or of a later version; the hint names others.
    """
    try:
        state = read_state(path)
        for name, digest in state["files"].items() if verify else ():
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
    if digest_of(path) != digest:
        raise CheckpointError(
            f"checkpoint `{path.parent}` is damaged: `{path.name}` is not what was written"
        )


def _equal_checkpoint(
    folder: Path,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor] | None,
    state: Mapping[str, Any],
) -> Path | None:
    """Return a checkpoint that is whole and holds just this, if there is one."""
    for path in in_order(folder):
        if step_of(path) != state["step"]:
            continue
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            continue
        if (
            state == {key: found.state[key] for key in found.state if key not in _OWN_KEYS}
            and _are_equal(found.model_tensors(), model_state)
            and _are_equal(found.optimizer_tensors(), optimizer_state)
            and _are_equal(found.ema_tensors() or {}, ema_state or {})
        ):
            return path
    return None


def _are_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name].detach().cpu()) for name in found
    )
