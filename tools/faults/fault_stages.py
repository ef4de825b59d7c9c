"""The commands that write, each with a small input and with what an earlier run left: for `faults`.

The tree of the earlier run has fewer files, so that every file that is written changes.
"""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from faults import Stage, fork, wait_for

_IMPORTED = "imported.txt"
_PIPELINE: dict[str, list[str]] = {
    "hash": ["hash", "{tree}", "--manifests", "m", "--num-workers", "2"],
    "relabel": ["relabel", "--manifests", "m"],
    "make-val": ["make-val", "--manifests", "m", "--per-class", "2"],
    "export-lists": ["export-lists", "--manifests", "m", "--out", "lists"],
    "import-md5sum": ["import-md5sum", "md5sum.txt", "--manifests", "imported"],
}


def command_stages(home: Path, *, num_classes: int = 6, num_files: int = 20) -> dict[str, Stage]:
    """Return the stages of data preparation, by name; their inputs are made below *home*.

    Args:
        home: A new folder.
        num_classes: Of the made-up tree.
        num_files: Of each class; the earlier run had half of them.
    """
    tree, state = home / "tree", home / "state"
    _grow(tree, state, range(num_files // 2), num_classes)
    for arguments in _PIPELINE.values():
        _do(arguments, tree, state)
        _import_what_it_needs(home)
    _grow(tree, state, range(num_files // 2, num_files), num_classes)
    stages = {}
    for name, arguments in _PIPELINE.items():
        before = home / "before" / name
        shutil.copytree(state, before)
        stages[name] = Stage(name, before, _runner(arguments, tree), read_everything)
        _do(arguments, tree, state)
    return stages


def _grow(tree: Path, state: Path, numbers: range, num_classes: int) -> None:
    """Add files to *tree*: every fifth is a copy of one in the next class; and list their MD5s."""
    state.mkdir(exist_ok=True)
    for k in range(num_classes):
        folder = tree / f"n{k:08}"
        folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            owner = (k + 1) % num_classes if number % 5 == 0 else k
            (folder / f"{number:03}.JPEG").write_bytes(b"%d of %d" % (number, owner) * 100)
        (folder / "README").touch()
    paths = sorted(tree.rglob("*.JPEG"))
    lines = [f"{_md5(path)}  {path.relative_to(tree)}\n" for path in paths]
    (state / "md5sum.txt").write_text("".join(lines))


def _md5(path: Path) -> str:
    import hashlib  # noqa: PLC0415

    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def _runner(arguments: list[str], tree: Path) -> Callable[[], int]:
    def run() -> int:
        from vit21k.cli.app import main  # noqa: PLC0415

        sys.argv = ["vit21k", *(argument.format(tree=tree) for argument in arguments)]
        main()
        return 0

    return run


def _do(arguments: list[str], tree: Path, work: Path) -> None:
    def run() -> int:
        code = 0
        try:
            _runner(arguments, tree)()
        except SystemExit as stop:
            code = int(stop.code or 0)
        (tree.parent / _IMPORTED).write_text("\n".join(sys.modules))
        return code

    if code := wait_for(fork(run, work)):
        raise RuntimeError(f"{arguments} ends with {code}")


def _import_what_it_needs(home: Path) -> None:
    """Import here what a command has imported, so that its next run, in a fork, does its work."""
    for name in (home / _IMPORTED).read_text().splitlines():
        if name.partition(".")[0] in {"vit21k", "pyarrow", "numpy", "pandas", "rich", "typer"}:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def read_everything() -> None:
    """Read all manifests and lists below the working directory; raise if one is damaged."""
    from vit21k.manifest.io import open_manifest  # noqa: PLC0415
    from vit21k.manifest.schema import KINDS  # noqa: PLC0415

    for path in Path().rglob("*.parquet"):
        if not path.name.startswith("."):
            open_manifest(path, KINDS[path.stem], allow_stale=True).read()
    for path in Path().rglob("*.txt"):
        if not path.read_text().endswith("\n"):
            raise ValueError(f"{path} is cut short")


def checkpoint_stage(home: Path, *, num_values: int = 2000) -> Stage:
    """Return the stage of saving a checkpoint while there is an older one."""
    import torch  # noqa: PLC0415

    from vit21k.checkpoint.store import find_latest, save_checkpoint  # noqa: PLC0415

    torch.set_num_threads(1)

    def save(step: int) -> int:
        try:
            save_checkpoint(
                Path("run"),
                step,
                model_state={"w": torch.full((num_values,), float(step))},
                model_config=_model_config(),
                optimizer_state={"exp_avg/w": torch.full((num_values,), float(-step))},
                state={"recipe": {}},
                keep_last=2,
            )
        except OSError:
            return 74  # as the command line does
        return 0

    def check() -> None:
        found, warnings = find_latest(Path("run"))
        if warnings or found is None or found.model_tensors()["w"][0] != found.step:
            raise ValueError(f"{found}: {warnings}")

    before = home / "before" / "checkpoint"
    before.mkdir(parents=True)
    if wait_for(fork(lambda: save(1), before)):
        raise RuntimeError("the first checkpoint fails")
    return Stage("checkpoint", before, lambda: save(2), check)


def _model_config() -> dict[str, object]:
    from vit21k.checkpoint.model_folder import EvalSettings, model_config  # noqa: PLC0415
    from vit21k.manifest.classes import ClassList  # noqa: PLC0415
    from vit21k.models.registry import model_args  # noqa: PLC0415

    name = "vit_tiny_patch16_224"
    settings = EvalSettings(
        img_size=224,
        mode="center_crop",
        resize=256,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return model_config(name, model_args(name), ClassList(("cat", "dog")), settings, "sigmoid")


def stages(home: Path, *, with_checkpoint: bool = True) -> dict[str, Stage]:
    """Return all stages, by name."""
    found = command_stages(home)
    if with_checkpoint:
        found["checkpoint"] = checkpoint_stage(home)
    return found


os.environ.setdefault("OMP_NUM_THREADS", "1")
