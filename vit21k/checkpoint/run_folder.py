"""``<run>/checkpoints``: which folders there are, which are named, which may go.

A *pointer* is a text file that names a checkpoint, or the averaged weights in one::

    latest          step-00000200
    best            step-00000100
    best-ema        step-00000150/ema.safetensors
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from vit21k.atomic import write_atomic

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
