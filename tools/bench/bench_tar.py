"""Time `vit21k hash` on a tar of tars against `cat`, and against unpacking it and `md5sum`.

    python tools/bench/bench_tar.py --out docs/internals/benchmarks.md

Images are real-sized: random bytes behind a JPEG header, so that nothing compresses.  Every round
runs each command once, in turn; the table has medians.  With `--cold` the system is asked to drop
the tar before each run, so that it comes from the disk.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

_JPEG = (
    b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc0\0\x11\x08\x01\x77\x01\xf4\x03"
)
_JPEG += b"\x01\x11\0\x02\x11\1\x03\x11\1\xff\xda\0\x0c\x03\1\0\2\x11\3\x11\0\x3f\0"
_MEAN_BYTES = 92_000  # of ImageNet-21K


def main() -> None:
    """Make the tar, run the rounds, print or store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=64)
    parser.add_argument("--images", type=int, default=100, help="in a class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="folder for the tar; default: a temporary one")
    parser.add_argument("--cold", action="store_true", help="read the tar from the disk")
    parser.add_argument("--out", type=Path, help="file whose `bench_tar` block is replaced")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        num_bytes = make_tar(work / "in" / "whole.tar", args.classes, args.images)
        seconds = measure(work, args.rounds, cold=args.cold)
    table = table_of(seconds, num_bytes, args)
    print(table)
    if args.out:
        write_or_check(args.out, {"bench_tar": table}, check=False)


def make_tar(path: Path, num_classes: int, num_images: int) -> int:
    """Write a tar of *num_classes* tars; return its size in bytes."""
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as whole:
        for index in range(num_classes):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(num_images):
                    size = max(int(rng.lognormal(np.log(_MEAN_BYTES) - 0.32, 0.8)), 2000)
                    content = _JPEG + rng.bytes(size).replace(b"\xff", b"\xfe") + b"\xff\xd9"
                    _add(tar, f"n{index:08}_{number}.JPEG", content)
            _add(whole, f"n{index:08}.tar", inner.getvalue())
    return path.stat().st_size


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def measure(work: Path, num_rounds: int, *, cold: bool) -> dict[str, list[float]]:
    """Return the seconds of each run of each command, in rounds."""
    tar, manifests, tree = work / "in" / "whole.tar", work / "m", work / "tree"
    hash_it = [sys.executable, "-c", _TIMED_HASH, str(tar), str(manifests)]
    unpack = (
        f"mkdir {tree} && tar -C {tree} -xf {tar} && cd {tree} && for t in *.tar; do "
        "mkdir ${t%.tar} && tar -C ${t%.tar} -xf $t && rm $t; done; "
        "find . -type f -print0 | xargs -0 md5sum > ../md5sum.txt"
    )
    seconds: dict[str, list[float]] = {}
    for _ in range(num_rounds):
        for name, command in (
            ("cat", ["sh", "-c", f"cat {tar} > /dev/null"]),
            (
                "vit21k hash",
                [sys.executable, "-m", "vit21k", "hash", str(tar), "--manifests", str(manifests)],
            ),
            ("hash_tree alone", hash_it),
            ("unpack, then md5sum", ["sh", "-c", unpack]),
        ):
            shutil.rmtree(tree, ignore_errors=True)
            shutil.rmtree(manifests, ignore_errors=True)
            os.sync()  # nobody pays for what the one before has still to write
            if cold:
                _drop_from_memory(tar)
            started = time.perf_counter()
            run = subprocess.run(command, check=True, capture_output=True, cwd=work)
            took = time.perf_counter() - started
            took = json.loads(run.stdout) if name == "hash_tree alone" else took
            seconds.setdefault(name, []).append(took)
    return seconds


_TIMED_HASH = """
import sys, time
from pathlib import Path
from vit21k.prep.hash_tree import hash_tree
started = time.perf_counter()
hash_tree(Path(sys.argv[1]), Path(sys.argv[2]))
print(time.perf_counter() - started)
"""


def _drop_from_memory(path: Path) -> None:
    """Have the system forget the content of a file, which must be on disk already."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def table_of(seconds: dict[str, list[float]], num_bytes: int, args: argparse.Namespace) -> str:
    """Return the table in Markdown."""
    num_files = args.classes * args.images
    cat = seconds["cat"]
    cache = "not in memory before each run" if args.cold else "in memory"
    what = (
        f"{num_files:,} images in {args.classes} class tars in one tar of "
        f"{num_bytes / 1e9:.2f} GB, {cache}; {args.rounds} rounds, median (range) in seconds; "
        "the ratio is the median of the rounds' own."
    )
    lines = [what, "", "| command | seconds | GB/s | of `cat` |", "|---|---|---|---|"]
    for name, runs in seconds.items():
        median = statistics.median(runs)
        ratio = statistics.median(run / base for run, base in zip(runs, cat, strict=True))
        lines.append(
            f"| {name} | {median:.2f} ({min(runs):.2f} to {max(runs):.2f}) | "
            f"{num_bytes / 1e9 / median:.2f} | {ratio:.2f} |"
        )
    times = statistics.median(
        slow / fast
        for slow, fast in zip(seconds["unpack, then md5sum"], seconds["vit21k hash"], strict=True)
    )
    lines += ["", f"`vit21k hash` is {times:.1f} times as fast as unpacking it and md5sum."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
