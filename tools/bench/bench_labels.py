"""Time and memory of `vit21k labels` on a manifest as large as ImageNet-21K.

python tools/bench/bench_labels.py [--rows 13003063] [--folder DIR]

The manifest is synthetic: fall11's classes, one image in eight with a second label, half of those
a parent of the first.  Each command runs in a process of its own; its peak memory is the system's.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vit21k.labels.edit import LabelLists
from vit21k.manifest.class_lists import known_list
from vit21k.manifest.io import ManifestHeader
from vit21k.manifest.schema import CLASSES, IMAGES
from vit21k.manifest.wordnet import Hierarchy
from vit21k.manifest.writer import manifest_writer, write_manifest

ROWS_OF_IMAGENET_21K = 13_003_063
BATCH_ROWS = 500_000
COMMANDS = (
    ("stats",),
    ("conflicts", "--limit", "0"),
    ("reduce",),
    ("expand",),
    ("expand", "--into-labels", "--out", "into"),
    ("select", "--drop", "n00007846"),
)


def make_manifests(folder: Path, num_rows: int) -> None:
    """Write `images` and `classes.parquet` with *num_rows* images."""
    classes = known_list("fall11")
    hierarchy = Hierarchy.of(classes)
    parent_K = hierarchy.primary_parent_K()
    rng = np.random.default_rng(0)
    header = ManifestHeader(algorithm="xxh3_128", root="/data", classes=classes.fingerprint)
    first_N = np.sort(rng.integers(0, len(classes), num_rows))
    num_images_K = np.zeros(len(classes), dtype=np.int64)
    with manifest_writer(IMAGES, folder, header, classes) as writer:
        for start in range(0, num_rows, BATCH_ROWS):
            first = first_N[start : start + BATCH_ROWS]
            lists = with_second_labels(first, parent_K, rng)
            num_images_K += np.bincount(lists.label_L, minlength=len(classes))
            writer.write(rows(first, lists, start, classes.wnids, rng))
    class_rows = {
        "class_index": np.arange(len(classes)),
        "wnid": classes.wnids,
        "name": classes.names,
        **dict.fromkeys(("num_files", "num_images", "num_single_label"), num_images_K),
    }
    write_manifest(pa.table(class_rows, schema=CLASSES.schema), CLASSES, folder, header)


def with_second_labels(
    first: np.ndarray, parent_K: np.ndarray, rng: np.random.Generator
) -> LabelLists:
    """Give one image in eight a second label; the first stays the smallest."""
    other = np.where(
        rng.random(len(first)) < 0.5, parent_K[first], rng.integers(0, len(parent_K), len(first))
    )
    has_other = (rng.random(len(first)) < 1 / 8) & (other > first)
    starts = np.append(0, np.cumsum(1 + has_other))
    labels = np.empty(starts[-1], dtype=np.int64)
    labels[starts[:-1]] = first
    labels[starts[:-1][has_other] + 1] = other[has_other]
    return LabelLists(starts, labels)


def rows(
    first: np.ndarray,
    lists: LabelLists,
    start: int,
    wnids: tuple[str, ...],
    rng: np.random.Generator,
) -> pa.Table:
    """Return rows of `images` with these labels, and paths as in ImageNet."""
    names = pa.array(wnids).take(pa.array(first))
    numbers = pa.array(np.arange(start, start + len(first))).cast(pa.string())
    paths = pa.compute.binary_join_element_wise(names, "/", names, "_", numbers, ".JPEG", "")
    digests = pa.py_buffer(rng.bytes(16 * len(first)))
    return pa.table(
        {
            "digest": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), len(first), [None, digests]
            ),
            "path": paths,
            "label_ids": lists.to_arrow(),
            "num_files": 1 + (lists.num_N > 1),
        }
    )


def measure(command: tuple[str, ...], folder: Path) -> tuple[float, float, str]:
    """Return the seconds and the gigabytes that a command takes, and its last line but one."""
    arguments = [sys.executable, "-m", "vit21k", "labels", *command, "--manifests", str(folder)]
    started_at = time.perf_counter()
    process = subprocess.Popen(
        arguments, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    stderr = process.stderr or sys.exit("no pipe")
    said = stderr.read().decode().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("\n".join(said))
    line = next(line for line in said if line.startswith(f"{command[0]}:"))
    return time.perf_counter() - started_at, usage.ru_maxrss / 1e6, line


def main(arguments: list[str]) -> int:
    """Print a table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS_OF_IMAGENET_21K)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_manifests(Path(folder), options.rows)
        print("| command | s | GB | it said |\n|---|---|---|---|")
        for command in COMMANDS:
            seconds, gigabytes, line = measure(command, Path(folder))
            print(f"| labels {' '.join(command)} | {seconds:.1f} | {gigabytes:.2f} | {line} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
