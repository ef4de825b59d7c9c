"""What `vit21k demo` types, what to look at, and what must have come out."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vit21k import errors
from vit21k.demo_tree import DemoTree
from vit21k.manifest.api import read_manifest

PER_CLASS = 10
TIMES_CHANCE = 4


class Check(NamedTuple):
    """One expectation: what it is, in words with the figures, and whether it holds."""

    text: str
    holds: bool


class Printed(NamedTuple):
    """What a command printed."""

    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command of the demo.

    Attributes:
        command: As a user types it, in the folder of the demo.
        look: What to look at, in a sentence.
        checks: Given what the command printed, yields what must hold.
        exit_code: How the command must end.
    """

    command: str
    look: str
    checks: Callable[[Printed], Iterator[Check]]
    exit_code: int = errors.EXIT_DONE


def steps_of(tree: DemoTree, manifests: Path, runs: Path) -> Iterator[Step]:
    """Yield the steps in their order; each may use what the steps before it have made."""
    yield Step(
        command=f"vit21k hash {tree.root.name}",
        look=f"exit code 3, by design: {tree.empty.name} is empty, and is listed in "
        f"{manifests.name}/problems.parquet",
        checks=lambda _: _check_hash(tree, manifests),
        exit_code=errors.EXIT_BAD_DATA,
    )
    yield Step(
        command="vit21k relabel",
        look="files with the same bytes are one picture now, with the labels of all its folders",
        checks=lambda _: _check_relabel(tree, manifests),
    )
    yield Step(
        command=f"vit21k make-val --per-class {PER_CLASS} --holdout",
        look="pictures with one label are held out; without --holdout they would stay in train too",
        checks=lambda _: _check_make_val(tree, manifests),
    )
    yield Step(
        command=f"vit21k train --stage pretrain --recipe tiny --run-dir {runs.name}/tiny",
        look=f"loss falls, val/prec@1 rises; {tree.cut_off.name} is cut off, which its bytes do "
        "not tell and decoding does: the recipe says `on_bad_image: replace`",
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
        look="prec@1 counts a picture as right if the top class is one of its labels",
        checks=lambda printed: _check_eval(tree, printed),
    )
    path, wnid = _a_val_picture(manifests)
    yield Step(
        command=f"vit21k predict {runs.name}/tiny_finetune {tree.root.name}/{path}",
        look=f"a picture of class {wnid} that was not trained on",
        checks=lambda printed: _check_predict(wnid, printed),
    )


def _check_hash(tree: DemoTree, manifests: Path) -> Iterator[Check]:
    problems = read_manifest("problems", manifests).to_pylist()
    yield _count("files hashed", read_manifest("digests", manifests).num_rows, tree.num_files)
    yield Check(
        "the empty file is the one problem",
        [(row["path"], row["kind"]) for row in problems] == [(tree.empty.as_posix(), "empty")],
    )


def _check_relabel(tree: DemoTree, manifests: Path) -> Iterator[Check]:
    images = read_manifest("images", manifests)
    num_multi_label = sum(len(labels) > 1 for labels in images["label_ids"].to_pylist())
    yield _count("pictures", images.num_rows, tree.num_pictures)
    yield _count("copies merged", read_manifest("copies", manifests).num_rows, tree.num_copies)
    yield _count("pictures of several classes", num_multi_label, tree.num_multi_label)


def _check_make_val(tree: DemoTree, manifests: Path) -> Iterator[Check]:
    train, val = (read_manifest(split, manifests) for split in ("train", "val"))
    both = set(train["digest"].to_pylist()) & set(val["digest"].to_pylist())
    yield _count("val pictures", val.num_rows, PER_CLASS * tree.num_classes)
    yield _count("train pictures", train.num_rows, tree.num_pictures - val.num_rows)
    yield Check("no picture is in both", not both)


def _check_train(tree: DemoTree, run_dir: Path, printed: Printed) -> Iterator[Check]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    yield Check(f"the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}", losses[-1] < losses[0])
    yield Check("it says that a picture was left out", "could not be decoded" in printed.err)
    yield _beats_chance(tree, [line for line in lines if "val/prec@1" in line][-1])


def _check_eval(tree: DemoTree, printed: Printed) -> Iterator[Check]:
    report = json.loads(printed.out)
    yield _count("val pictures judged", report["val/num_images"], PER_CLASS * tree.num_classes)
    yield _beats_chance(tree, report)


def _check_predict(wnid: str, printed: Printed) -> Iterator[Check]:
    yield Check(f"{wnid} is among the classes it names", wnid in printed.out)


def _beats_chance(tree: DemoTree, metrics: dict[str, Any]) -> Check:
    accuracy, chance = metrics["val/prec@1"], 1 / tree.num_classes
    text = f"val/prec@1 is {accuracy:.3f}, {accuracy / chance:.0f} times chance ({chance:.3f})"
    return Check(text, accuracy >= TIMES_CHANCE * chance)


def _count(what: str, found: int, expected: int) -> Check:
    ending = "as expected" if found == expected else f"not {expected:,}"
    return Check(f"{found:,} {what}, {ending}", found == expected)


def _a_val_picture(manifests: Path) -> tuple[str, str]:
    """Return path and wnid of the last picture held out."""
    row = read_manifest("val", manifests).to_pylist()[-1]
    wnids = read_manifest("classes", manifests)["wnid"].to_pylist()
    return row["path"], wnids[row["label_ids"][0]]
