"""Opening a train manifest as large as ImageNet-21K: how long it takes, and memory of a process.

Each way of keeping the rows runs in processes of its own, round after round.  A process opens the
rows, takes the first batch of a shuffled epoch with its paths and labels, and then visits every
row of the epoch in that order.  *Private* is what the kernel counts for that process alone
(`Private_Dirty` of `smaps_rollup`, above what it had before it opened anything); of a process that
is forked from one that holds the rows, as a DataLoader's worker is, it is what was copied because
it was looked at.

    python tools/bench/bench_rows.py [--rows N] [--num-rounds 3] [--work DIR] [--out PAGE | --json]
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data.dataset import ImageDataset
from vit21k.data.rng import permute
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ManifestHeader, open_manifest
from vit21k.manifest.schema import DIGEST_BYTES, TRAIN
from vit21k.manifest.writer import manifest_writer

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

NUM_ROWS = 14_197_122
_NUM_CLASSES = 21_841
_CHUNK = 1 << 16
_MIB = 1 << 20


class Rows(Protocol):
    """What a loader asks of rows."""

    def visit(self, rows: NDArray[np.int64]) -> int:
        """Look at path and labels of each; return how many bytes and labels that were."""


class OurRows:
    """Rows as `Images` keeps them."""

    def __init__(self, folder: Path, *, mapped: bool) -> None:
        manifest = open_manifest(folder, TRAIN)
        self._images = ImageDataset.from_manifest(manifest, folder, mapped=mapped)

    def visit(self, rows: NDArray[np.int64]) -> int:
        """Look at path and labels of each."""
        _, label_ids = self._images.labels_of(rows)
        return sum(len(self._images.path(row)) for row in rows.tolist()) + len(label_ids)


class ListOfRows:
    """Rows as ImageFolder and most training scripts keep them: a list of (path, labels)."""

    def __init__(self, folder: Path) -> None:
        self._rows: list[tuple[str, list[int]]] = []
        for rows in open_manifest(folder, TRAIN).batches(["path", "label_ids"]):
            self._rows += zip(rows["path"].to_pylist(), rows["label_ids"].to_pylist(), strict=True)

    def visit(self, rows: NDArray[np.int64]) -> int:
        """Look at path and labels of each."""
        total = 0
        for row in rows.tolist():
            path, labels = self._rows[row]
            total += len(path) + len(labels)
        return total


KINDS: dict[str, Callable[[Path], Rows]] = {
    "mapped": lambda folder: OurRows(folder, mapped=True),
    "arrow": lambda folder: OurRows(folder, mapped=False),
    "list": ListOfRows,
}
WORDS = {
    "mapped": "vit21k: index, mapped",
    "arrow": "the manifest, read into flat arrays",
    "list": "a list of (path, labels)",
}


def make(folder: Path, num_rows: int) -> None:
    """Write a train manifest; 7 % of its images have a second label."""
    random = np.random.default_rng(0)
    wnids = [f"n{number:08}" for number in sorted(random.choice(15_000_000, _NUM_CLASSES, False))]
    header = ManifestHeader(algorithm="xxh3_128", root=str(folder), classes="made up")
    with manifest_writer(TRAIN, folder, header, ClassList(tuple(wnids))) as writer:
        for start in range(0, num_rows, _CHUNK):
            writer.write(_made_rows(random, wnids, np.arange(start, min(start + _CHUNK, num_rows))))


def _made_rows(random: np.random.Generator, wnids: list[str], rows: NDArray[np.int64]) -> pa.Table:
    # A class has 650 images in a row, as in a sorted manifest.
    class_ids = rows * _NUM_CLASSES // NUM_ROWS
    paths = [
        f"{wnids[k]}/{wnids[k]}_{row * 7}.JPEG"
        for k, row in zip(class_ids.tolist(), rows.tolist(), strict=True)
    ]
    counts = 1 + (random.random(len(rows)) < 0.07)
    starts = np.concatenate([[0], np.cumsum(counts)])
    label_ids = np.repeat(class_ids, counts)
    label_ids[starts[1:] - 1] += counts - 1
    digests = pa.py_buffer(random.bytes(len(rows) * DIGEST_BYTES))
    return pa.table(
        {
            "digest": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(DIGEST_BYTES), len(rows), [None, digests]
            ),
            "path": paths,
            "label_ids": pa.ListArray.from_arrays(starts.astype(np.int32), label_ids),
        }
    )


def private_bytes() -> int:
    """Return the memory that this process shares with no other and no file."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("smaps_rollup has no Private_Dirty")


def shuffled(num_rows: int) -> Iterator[NDArray[np.int64]]:
    """Yield all rows in the order of an epoch, by batches."""
    for start in range(0, num_rows, _CHUNK):
        yield permute(np.arange(start, min(start + _CHUNK, num_rows)), num_rows, key=1)


def measure(kind: str, folder: Path, num_rows: int) -> dict[str, float]:
    """Open the rows and visit them all, here and in a process that is forked from this one."""
    before = private_bytes()
    started = time.perf_counter()
    rows = KINDS[kind](folder)
    rows.visit(next(shuffled(num_rows))[:1])
    opened = time.perf_counter() - started
    gc.collect()
    result = {"seconds": opened, "opened_mib": (private_bytes() - before) / _MIB}
    worker = _in_worker(rows, num_rows)
    started = time.perf_counter()
    total = sum(rows.visit(batch) for batch in shuffled(num_rows))
    if total != worker.pop("total"):
        raise RuntimeError("the worker saw other rows")
    seconds = time.perf_counter() - started
    private = (private_bytes() - before) / _MIB
    return {**result, "epoch_mib": private, **worker, "rows_per_second": num_rows / seconds}


def _in_worker(rows: Rows, num_rows: int) -> dict[str, float]:
    reader, writer = os.pipe()
    if not os.fork():
        before = private_bytes()
        total = sum(rows.visit(batch) for batch in shuffled(num_rows))
        report = {"worker_mib": (private_bytes() - before) / _MIB, "total": total}
        os.write(writer, json.dumps(report).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        report = json.load(file)
    os.wait()
    return dict(report)


def run(kind: str, folder: Path, num_rows: int) -> dict[str, float]:
    """Measure in a new process."""
    command = [sys.executable, __file__, "--measure", kind, "--work", str(folder)]
    output = subprocess.run(
        [*command, "--rows", str(num_rows)], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return dict(json.loads(output))


def index_seconds(folder: Path) -> float:
    """Make the index afresh; return how long that took."""
    shutil.rmtree(folder / ".rows", ignore_errors=True)
    manifest = open_manifest(folder, TRAIN)
    index = ImageDataset.from_manifest(manifest, folder, mapped=True).index
    if index is None or index.seconds is None:
        raise RuntimeError("there is no index: fewer rows than are worth one?")
    return index.seconds


def compare(folder: Path, num_rows: int, num_rounds: int) -> dict[str, Any]:
    """Measure every kind in every round; return the medians."""
    if not (folder / TRAIN.file_name).exists():
        make(folder, num_rows)
    made = index_seconds(folder)
    rounds = [{kind: run(kind, folder, num_rows) for kind in KINDS} for _ in range(num_rounds)]
    kinds = {
        kind: {
            figure: statistics.median(values[kind][figure] for values in rounds)
            for figure in rounds[0][kind]
        }
        for kind in KINDS
    }
    index = next(path for path in (folder / ".rows").iterdir() if path.is_dir())
    return {
        "num_rows": num_rows,
        "num_rounds": num_rounds,
        "index_seconds": made,
        "index_mib": sum(path.stat().st_size for path in index.iterdir()) / _MIB,
        "kinds": kinds,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    about = (
        f"{result['num_rows']:,} made-up rows, {result['num_rounds']} round(s), medians. The index "
        f"is made once, in {result['index_seconds']:.1f} s, and takes {result['index_mib']:,.0f} "
        "MiB of disk."
    )
    head = ("rows kept as", "to the first index, s", "private, opened, MiB")
    more = ("after a shuffled epoch, MiB", "a forked worker's own, after one, MiB", "rows/s")
    lines = [about, "", f"| {' | '.join(head + more)} |", "|---" * len(head + more) + "|"]
    for kind, values in result["kinds"].items():
        lines.append(
            f"| {WORDS[kind]} | {values['seconds']:.2f} | {values['opened_mib']:,.0f} | "
            f"{values['epoch_mib']:,.0f} | {values['worker_mib']:,.0f} | "
            f"{values['rows_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--num-rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep the made manifest here")
    parser.add_argument("--out", type=Path, help="page with the block `bench_rows`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.work, args.rows)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = compare(args.work or Path(scratch), args.rows, args.num_rounds)
    if args.out:
        return write_or_check(args.out, {"bench_rows": table(result)}, check=False)
    print(json.dumps(result, indent=2) if args.json else table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
