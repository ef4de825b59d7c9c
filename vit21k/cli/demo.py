"""`demo`: all steps on a small tree of generated images."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

import vit21k
from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import require_torch

if TYPE_CHECKING:
    from vit21k.demo_tree import DemoTree

PER_CLASS = 10
TIMES_CHANCE = 4


class Check(NamedTuple):
    """An expectation, in words with figures, and whether it holds."""

    text: str
    holds: bool


class Printed(NamedTuple):
    """Output of a command."""

    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the demo.

    Attributes:
        command: As typed in the folder of the demo.
        look: What to look at, in a sentence.
        checks: Yields the expectations, from the output of the command.
        exit_code: Expected exit code.
    """

    command: str
    look: str
    checks: Callable[[Printed], Iterator[Check]]
    exit_code: int = errors.EXIT_DONE


def steps_of(tree: "DemoTree", manifests: Path, runs: Path) -> Iterator[Step]:
    """Yield the steps in order; each may use the results of earlier ones."""
    yield Step(
        command=f"vit21k hash {tree.root.name}",
        look=f"exit code 3, by design: {tree.empty.name} is empty, and is listed in "
        f"{manifests.name}/problems.parquet",
        checks=lambda _: _check_hash(tree, manifests),
        exit_code=errors.EXIT_BAD_DATA,
    )
    yield Step(
        command="vit21k relabel",
        look="files with the same bytes are one image now, with the labels of all its folders",
        checks=lambda _: _check_relabel(tree, manifests),
    )
    yield Step(
        command=f"vit21k make-val --per-class {PER_CLASS} --holdout",
        look="images with one label are held out; without --holdout they would stay in train too",
        checks=lambda _: _check_make_val(tree, manifests),
    )
    yield Step(
        command=f"vit21k train --stage pretrain --recipe tiny --run-dir {runs.name}/tiny",
        look=f"loss falls, val/prec@1 rises; {tree.cut_off.name} is truncated, which only decoding "
        "detects: the recipe has `on_bad_image: replace`",
        checks=lambda printed: _check_train(tree, runs / "tiny", printed),
    )
    yield Step(
        command="vit21k train --stage finetune --recipe tiny_finetune "
        f"--init {runs.name}/tiny --run-dir {runs.name}/tiny_finetune",
        look="the same weights at a larger image size, with a new head",
        checks=lambda printed: _check_train(tree, runs / "tiny_finetune", printed),
    )
    yield Step(
        command=f"vit21k eval {runs.name}/tiny_finetune --json",
        look="prec@1 counts an image as right if the top class is one of its labels",
        checks=lambda printed: _check_eval(tree, printed),
    )
    path, wnid = _a_val_image(manifests)
    yield Step(
        command=f"vit21k predict {runs.name}/tiny_finetune {tree.root.name}/{path}",
        look=f"an image of class {wnid} that was not trained on",
        checks=lambda printed: _check_predict(wnid, printed),
    )


def _check_hash(tree: "DemoTree", manifests: Path) -> Iterator[Check]:
    problems = vit21k.read_manifest("problems", manifests).to_pylist()
    yield _count(
        "files hashed", vit21k.read_manifest("digests", manifests).num_rows, tree.num_files
    )
    yield Check(
        "the empty file is the one problem",
        [(row["path"], row["kind"]) for row in problems] == [(tree.empty.as_posix(), "empty")],
    )


def _check_relabel(tree: "DemoTree", manifests: Path) -> Iterator[Check]:
    images = vit21k.read_manifest("images", manifests)
    num_multi_label = sum(len(labels) > 1 for labels in images["label_ids"].to_pylist())
    yield _count("images", images.num_rows, tree.num_images)
    yield _count(
        "copies merged", vit21k.read_manifest("copies", manifests).num_rows, tree.num_copies
    )
    yield _count("images of several classes", num_multi_label, tree.num_multi_label)


def _check_make_val(tree: "DemoTree", manifests: Path) -> Iterator[Check]:
    train, val = (vit21k.read_manifest(split, manifests) for split in ("train", "val"))
    both = set(train["digest"].to_pylist()) & set(val["digest"].to_pylist())
    yield _count("val images", val.num_rows, PER_CLASS * tree.num_classes)
    yield _count("train images", train.num_rows, tree.num_images - val.num_rows)
    yield Check("no image is in both", not both)


def _check_train(tree: "DemoTree", run_dir: Path, printed: Printed) -> Iterator[Check]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    yield Check(f"the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}", losses[-1] < losses[0])
    yield Check(
        "an image that could not be decoded is reported", "could not be decoded" in printed.err
    )
    yield _beats_chance(tree, [line for line in lines if "val/prec@1" in line][-1])


def _check_eval(tree: "DemoTree", printed: Printed) -> Iterator[Check]:
    report = json.loads(printed.out)
    yield _count("val images judged", report["val/num_images"], PER_CLASS * tree.num_classes)
    yield _beats_chance(tree, report)


def _check_predict(wnid: str, printed: Printed) -> Iterator[Check]:
    yield Check(f"{wnid} is among the predicted classes", wnid in printed.out)


def _beats_chance(tree: "DemoTree", metrics: dict[str, Any]) -> Check:
    accuracy, chance = metrics["val/prec@1"], 1 / tree.num_classes
    text = f"val/prec@1 is {accuracy:.3f}, {accuracy / chance:.0f} times chance ({chance:.3f})"
    return Check(text, accuracy >= TIMES_CHANCE * chance)


def _count(what: str, found: int, expected: int) -> Check:
    ending = "as expected" if found == expected else f"not {expected:,}"
    return Check(f"{found:,} {what}, {ending}", found == expected)


def _a_val_image(manifests: Path) -> tuple[str, str]:
    """Return path and wnid of the last image held out."""
    row = vit21k.read_manifest("val", manifests).to_pylist()[-1]
    wnids = vit21k.read_manifest("classes", manifests)["wnid"].to_pylist()
    return row["path"], wnids[row["label_ids"][0]]


_MARKER = ".made-by-vit21k-demo"
_TREE, _MANIFESTS, _RUNS = "ImageNet21K", "data_manifests", "runs"


def demo_command(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder; that of an earlier demo is replaced.")
    ] = Path("demo"),
) -> None:
    """Run all steps on generated images, in a few minutes.

    Generates a small tree in the layout of ImageNet-21K with planted errors, then runs hash,
    relabel, make-val, pretraining, fine-tuning, eval and predict, and checks that the planted
    errors are found.  The exit code is 1 if they are not.

    [bold]Examples[/bold]

        vit21k demo

        vit21k demo /scratch/demo
    """
    _require_own(folder)
    require_torch("demo")
    from vit21k.demo_tree import make_demo_tree

    _clear(folder)
    started_at = time.monotonic()
    tree = make_demo_tree(folder / _TREE)
    console.print_lines(
        f"# {tree.num_files + 1:,} files of {tree.num_classes} classes in {folder / _TREE}; "
        f"planted: {tree.num_copies} copies of images, {tree.num_multi_label} images in "
        "several classes, an empty file, a truncated file, a PNG named .JPEG"
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
    """Check that *folder* is empty, or that of an earlier demo.

    Raises:
        UsageError: It is not.
    """
    ours = (folder / _MARKER).is_file() or not folder.exists()
    if not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise errors.UsageError(
            f"`{folder}` is not empty, and was not created by `demo`",
            hint="name a new folder: `vit21k demo DIR`",
        )


def _clear(folder: Path) -> None:
    """Create *folder* with a marker that identifies it, and without results of an earlier demo."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARKER).touch()
    for name in (_TREE, _MANIFESTS, _RUNS):
        shutil.rmtree(folder / name, ignore_errors=True)


def _run(step: "Step", folder: Path) -> list[bool]:
    """Run and show a step; return which of its checks hold.

    Raises:
        Vit21kError: It ended with another exit code.
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
    """Run *command* in *folder* and show its output; return its exit code and output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("VIT21K_")}
    pipe = subprocess.PIPE
    sys.stdout.flush()
    with (
        subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True) as run,
        _terminated(run),
        ThreadPoolExecutor(2) as pool,
    ):
        out = pool.submit(_forward, run.stdout, sys.stdout)
        err = pool.submit(_forward, run.stderr, sys.stderr)
    return run.returncode, Printed(out.result(), err.result())


@contextmanager
def _terminated(run: "subprocess.Popen[str]") -> Iterator[None]:
    """Terminate *run* if the block raises."""
    try:
        yield
    except BaseException:
        run.terminate()
        raise


def _forward(source: IO[str] | None, sink: TextIO) -> str:
    """Copy lines as they arrive; return all of them."""
    lines = []
    for line in source or ():
        sink.write(line)
        sink.flush()
        lines.append(line)
    return "".join(lines)
