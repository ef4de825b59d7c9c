"""Time `vit21k hash` on trees of one kind of file each, as a ratio to `md5sum`.

    python tools/bench/bench_hash_kinds.py FOLDER_OF_JPEGS --out docs/internals/speed.md

Trees are made from the JPEGs in the folder, by Pillow. All runs are of whole processes with the
tree in memory, interleaved: md5sum, hash, and hash of a single file, which is mostly the start of
the interpreter. Kinds have files of different sizes, so they are compared without the start.
"""

import argparse
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

_SMALL = 320  # pixels: pixels that are hardly compressed would make files larger than originals
_LARGE = (4000, 3000)
_NUM_LARGE = 60  # files, for each 3,000 others

Make = Callable[[bytes], bytes]


def _saved(image_format: str, size: int = 0, mode: str = "RGB", **options: Any) -> Make:
    def make(content: bytes) -> bytes:
        image = Image.open(io.BytesIO(content)).convert("RGB").convert(mode)
        if size:
            image.thumbnail((size, size))
        file = io.BytesIO()
        image.save(file, image_format, **options)
        return file.getvalue()

    return make


def _large(content: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).convert("RGB").resize(_LARGE).save(file, "JPEG", quality=95)
    return file.getvalue()


def _after_start(part: bytes) -> Make:
    return lambda content: content[:2] + part + content[2:]


def _with_adobe(transform: int) -> Make:
    make = _saved("JPEG", mode="CMYK")

    def with_segment(content: bytes) -> bytes:
        made = make(content)
        at = made.index(b"Adobe") + 11
        return made[:at] + bytes([transform]) + made[at + 1 :]

    return with_segment


_PNG = _saved("PNG", _SMALL, compress_level=1)
_BROTHER = b"\xff\xd8" + bytes(3_000) + b"\xff\xd9"  # stands for an embedded second image

KINDS: dict[str, tuple[str, Make]] = {
    "baseline": (".JPEG", lambda content: content),
    "trailing bytes": (".JPEG", lambda content: content + b"\0\0\n"),
    "second image after the end": (".JPEG", lambda content: content + _BROTHER),
    "truncated": (".JPEG", lambda content: content[: len(content) * 9 // 10]),
    "truncated, with an end marker": (
        ".JPEG",
        lambda content: content[: len(content) * 9 // 10] + b"\xff\xd9",
    ),
    "end marker in EXIF": (".JPEG", _after_start(b"\xff\xe1\0\x0cExif\0\0\xff\xd8\xff\xd9")),
    "fill bytes": (".JPEG", _after_start(b"\xff\xff\xff")),
    "junk between segments": (".JPEG", _after_start(b"junk")),
    "no JFIF segment": (".JPEG", lambda content: content.replace(b"JFIF\0", b"JFXX\0", 1)),
    "progressive": (".JPEG", _saved("JPEG", quality=90, progressive=True)),
    "RGB JPEG": (".JPEG", _saved("JPEG", quality=90, keep_rgb=True)),
    "CMYK JPEG": (".JPEG", _saved("JPEG", quality=90, mode="CMYK")),
    "YCCK JPEG": (".JPEG", _with_adobe(2)),
    "12 MP": (".JPEG", _large),
    "JPEG named .png": (".png", lambda content: content),
    "PNG": (".png", _PNG),
    "PNG, trailing chunk": (".png", lambda content: _PNG(content) + bytes(99)),
    "PNG named .JPEG": (".JPEG", _PNG),
    "WebP": (".webp", _saved("WEBP", quality=90, method=0)),
    "GIF": (".gif", _saved("GIF", _SMALL, mode="P")),
    "BMP": (".bmp", _saved("BMP", _SMALL)),
    "TIFF": (".tif", _saved("TIFF", _SMALL)),
    "JPEG 2000 (format unknown)": (".jp2", lambda content: b"\0\0\0\x0cjP  \r\n\x87\n" + content),
}
"""Suffix of the files, and what makes one of a JPEG."""
_BASELINE, _MIXED = "baseline", "mixed, all kinds"


class Times(NamedTuple):
    """Of one run of a command.

    Attributes:
        wall: Seconds.
        cpu: Seconds, of all threads.
    """

    wall: float
    cpu: float


def main() -> None:
    """Make the trees, run the rounds, print or store the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", type=Path, help="folder with baseline JPEGs below it")
    parser.add_argument("--files", type=int, default=3_000, help="of each tree")
    parser.add_argument("--sources", type=int, default=500, help="JPEGs that they are made of")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--kind", action="append", help="name of one; may be repeated; default: all"
    )
    parser.add_argument("--work", type=Path, help="folder for the trees; default: a temporary one")
    parser.add_argument("--out", type=Path, help="file whose block is replaced")
    args = parser.parse_args()
    kinds = args.kind or [*KINDS, _MIXED]
    paths = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in _JPEGS)
    sources = [path.read_bytes() for path in paths[: args.sources]]
    lines = _heading(args)
    baseline = 0.0
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        _make_tree(work / "one", _BASELINE, sources, 1)
        for kind in [_BASELINE, *(kind for kind in kinds if kind != _BASELINE)]:
            num_bytes = _make_tree(work / "kind", kind, sources, args.files)
            times = _measure(work, args.rounds)
            of_md5sum = _without_start(times)
            baseline = baseline or of_md5sum
            lines.append(_row(kind, num_bytes, times, of_md5sum, baseline))
            print(lines[-1], flush=True)
            shutil.rmtree(work / "kind")
    if args.out:
        write_or_check(args.out, {"bench_hash_kinds": "\n".join(lines)}, check=False)


_JPEGS = (".jpg", ".jpeg")


def _heading(args: argparse.Namespace) -> list[str]:
    return [
        (
            f"{args.files:,} files of each kind, made of {args.sources} JPEGs, in memory; "
            f"{os.cpu_count()} processors; medians of {args.rounds} rounds. Last columns: CPU time "
            "without that of hashing one file, of md5sum's CPU time, and relative to baseline JPEGs."
        ),
        "",
        "| kind | MB | md5sum, s | hash, s | of md5sum | CPU of md5sum | of baseline |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]


def _make_tree(tree: Path, kind: str, sources: list[bytes], num_files: int) -> int:
    """Make a tree of ten classes; return its bytes."""
    folders = [tree / f"n{number:08}" for number in range(10)]
    for folder in folders:
        folder.mkdir(parents=True)
    makers = list(KINDS.values()) if kind == _MIXED else [KINDS[kind]]
    if kind == "12 MP":
        num_files = max(1, num_files * _NUM_LARGE // 3_000)
    if kind == _MIXED:
        makers.remove(KINDS["12 MP"])
    pairs = islice(zip(sources, cycle(makers), strict=False), num_files)
    made = [(suffix, make(content)) for content, (suffix, make) in pairs]
    num_bytes = 0
    for number, (suffix, content) in enumerate(islice(cycle(made), num_files)):
        num_bytes += len(content)
        (folders[number % 10] / f"{number}{suffix}").write_bytes(content)
    return num_bytes


def _measure(work: Path, num_rounds: int) -> dict[str, list[Times]]:
    """Return the times of each command, after a round to warm up."""
    hash_it = [sys.executable, "-m", "vit21k", "hash", "--manifests", str(work / "m")]
    commands = {
        "md5sum": ["sh", "-c", f"find {work / 'kind'} -type f | xargs md5sum"],
        "hash": [*hash_it, str(work / "kind")],
        "start": [*hash_it, str(work / "one")],
    }
    times: dict[str, list[Times]] = {name: [] for name in commands}
    for number in range(-1, num_rounds):
        for name, command in commands.items():
            shutil.rmtree(work / "m", ignore_errors=True)
            run = _run(command)
            if number >= 0:
                times[name].append(run)
    return times


def _run(command: list[str]) -> Times:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 3):  # 3: some files are listed as problems
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Times(wall, usage.ru_utime + usage.ru_stime)


def _without_start(times: dict[str, list[Times]]) -> float:
    """Return the median of hash's CPU time without its start, of md5sum's."""
    rounds = zip(times["hash"], times["start"], times["md5sum"], strict=True)
    return statistics.median((whole.cpu - start.cpu) / md5.cpu for whole, start, md5 in rounds)


def _row(
    kind: str,
    num_bytes: int,
    times: dict[str, list[Times]],
    of_md5sum: float,
    baseline: float,
) -> str:
    pairs = zip(times["hash"], times["md5sum"], strict=True)
    cells = (
        f"{num_bytes / 1e6:.0f}",
        f"{statistics.median(run.wall for run in times['md5sum']):.2f}",
        f"{statistics.median(run.wall for run in times['hash']):.2f}",
        f"{statistics.median(one.wall / other.wall for one, other in pairs):.2f}",
        f"{of_md5sum:.2f}",
        f"{of_md5sum / baseline:.2f}",
    )
    return f"| {kind} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
