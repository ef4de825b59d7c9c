"""`demo`: the whole path for real, on a small tree of generated pictures."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, TextIO

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.requires import require_torch

if TYPE_CHECKING:
    from vit21k.cli.demo_steps import Printed, Step

_MARKER = ".made-by-vit21k-demo"
_TREE, _MANIFESTS, _RUNS = "ImageNet21K", "data_manifests", "runs"


def register(app: typer.Typer) -> None:
    """Add `demo` to *app*."""
    app.command("demo", rich_help_panel="Help")(demo_command)


def demo_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where; what an earlier demo left is replaced.")
    ] = Path("demo"),
) -> None:
    """See the whole path on generated pictures, in a few minutes.

    Draws a small tree in the shape of ImageNet-21K with faults planted in it, then runs hash,
    relabel, make-val, pretraining, fine-tuning, eval and predict as you would, and checks that
    what was planted was found.  Exit code 1 if it was not.

    [bold]Examples[/bold]

        vit21k demo

        vit21k demo /scratch/demo
    """
    _require_own(folder)
    require_torch("demo")
    from vit21k.cli.demo_steps import steps_of
    from vit21k.demo_tree import make_demo_tree

    _clear(folder)
    started_at = time.monotonic()
    tree = make_demo_tree(folder / _TREE)
    console.print_lines(
        f"# {tree.num_files + 1:,} files of {tree.num_classes} classes in {folder / _TREE}; "
        f"planted: {tree.num_copies} copies of pictures, {tree.num_multi_label} pictures in "
        "several classes, an empty file, a file that is cut off, a PNG named .JPEG"
    )
    console.print_lines(f"$ cd {shlex.quote(str(folder))}")
    results = []
    for step in steps_of(tree, folder / _MANIFESTS, folder / _RUNS):
        results += _run(step, folder)
    console.print_lines("")
    console.done(
        f"demo: {len(results)} checks: {sum(results)} hold, {len(results) - sum(results)} do not; "
        f"{console.duration(time.monotonic() - started_at)}"
    )
    if not all(results):
        raise typer.Exit(errors.EXIT_FAILED)
    console.note("next: `vit21k hash` with your own image root, or `vit21k -h`")


def _require_own(folder: Path) -> None:
    """Check that a demo made *folder*, or that there is nothing in it.

    Raises:
        UsageError: There is something in it that no demo has made.
    """
    ours = (folder / _MARKER).is_file() or not folder.exists()
    if not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.UsageError(
            f"`{folder}` is not empty, and no demo made it",
            hint="give the demo a folder of its own: `vit21k demo DIR`",
        )


def _clear(folder: Path) -> None:
    """Make *folder*, empty but for the marker that says it is a demo's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for name in (_TREE, _MANIFESTS, _RUNS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _run(step: "Step", folder: Path) -> list[bool]:
    """Run one step and show it; return which of its checks hold.

    Raises:
        Vit21kError: It ended in a way that leaves nothing for the next step to go on with.
    """
    console.print_lines(f"\n$ {step.command}")
    exit_code, printed = _start([sys.executable, "-m", *shlex.split(step.command)], folder)
    console.print_lines(f"# look: {step.look}")
    if exit_code != step.exit_code:
        raise errors.Vit21kError(
            f"`{step.command}` ended with exit code {exit_code}, not {step.exit_code}",
            hint="run `vit21k doctor`",
        )
    checks = list(step.checks(printed))
    for check in checks:
        console.print_lines(f"# {'ok' if check.holds else 'NOT OK'}: {check.text}")
    return [check.holds for check in checks]


def _start(command: list[str], folder: Path) -> tuple[int, "Printed"]:
    """Run *command* in *folder* and show what it prints; return its exit code and that."""
    from vit21k.cli.demo_steps import Printed

    env = {name: value for name, value in os.environ.items() if not name.startswith("VIT21K_")}
    pipe = subprocess.PIPE
    sys.stdout.flush()
    with (
        subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True) as run,
        _ended_with_us(run),
        ThreadPoolExecutor(2) as pool,
    ):
        out = pool.submit(_pass_on, run.stdout, sys.stdout)
        err = pool.submit(_pass_on, run.stderr, sys.stderr)
    return run.returncode, Printed(out.result(), err.result())


@contextmanager
def _ended_with_us(run: "subprocess.Popen[str]") -> Iterator[None]:
    """End *run* if the block is left by a signal."""
    try:
        yield
    except BaseException:
        run.terminate()
        raise


def _pass_on(source: IO[str] | None, sink: TextIO) -> str:
    """Copy lines as they come; return all of them."""
    lines = []
    for line in source or ():
        sink.write(line)
        sink.flush()
        lines.append(line)
    return "".join(lines)
