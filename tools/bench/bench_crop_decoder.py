"""Time crop.c against libjpeg-turbo's jpeg_crop_scanline and jpeg_skip_scanlines.

    python tools/bench/bench_crop_decoder.py FOLDER --rounds 7
    python tools/bench/bench_crop_decoder.py FOLDER --libjpeg /path/to/libjpeg.so.62
    python tools/bench/bench_crop_decoder.py FOLDER --portable --side 32

Random crops are drawn as training draws them, one of each JPEG of the folder, and taken from the
file as it is and from its tiles, as `vit21k pack --lossless` stores it. Of tiles, libjpeg-turbo is
given the whole file, and also a small JPEG of the tiles that cover the crop (`tile_cuts.py`), which
is cut out beforehand and not timed. Both decoders are called from C (tools/bench/yardstick/crop_jpeg.c),
by one thread, and timed in CPU seconds; once they only decode, once the same code resizes what
each has decoded. Every round runs all of them in turn; ratios are medians of the rounds' own.
Finally crop.c is called from Python, as by a loader, and compared with a loader without the
extension (Pillow, torch).

Needs a C compiler and the header files of libjpeg-turbo (Debian: libjpeg62-turbo-dev).
"""

import argparse
import ctypes
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from tile_cuts import parse_tile_jpeg

from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import Crop, crop_box, crop_decoder, resample

sys.path.append(str(Path(__file__).parents[1] / "check"))

from drawn_crops import drawn_crops

SOURCE = Path(__file__).parent / "yardstick" / "crop_jpeg.c"
FLAGS = ("-O3", "-g0", "-ffp-contract=off", "-fwrapv", "-Wno-psabi", "-fPIC", "-shared")
CHUNK = 32  # crops of a call from Python
Box = tuple[int, int, int, int]


class Work(ctypes.Structure):
    """As in crop_jpeg.c."""

    _fields_ = (
        ("contents", ctypes.c_void_p),
        ("num_bytes", ctypes.c_void_p),
        ("crops", ctypes.c_void_p),
        ("count", ctypes.c_int),
        ("size", ctypes.c_int),
        ("out", ctypes.c_void_p),
        ("is_done", ctypes.c_void_p),
    )


class Files(NamedTuple):
    """Files and a crop of each."""

    contents: list[bytes]
    boxes: list[Box]


class Way(NamedTuple):
    """A decoder and what it is given."""

    run: Callable[[Any], float]
    files: Files


def main() -> None:
    """Draw the crops, run the rounds, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--libjpeg", type=Path, help="default: the one that Pillow's wheel has")
    parser.add_argument("--side", type=int, default=224, help="of the resized crops")
    parser.add_argument("--portable", action="store_true", help="crop.c without AVX2")
    args = parser.parse_args()
    library, name = built(args.libjpeg or bundled(), is_portable=args.portable)
    originals, tiled, cut = files_of(args.folder)
    groups = {
        "originals": {
            "crop.c": Way(library.run_ours, originals),
            "libjpeg-turbo": Way(library.run_turbo, originals),
        },
        "tiles": {
            "crop.c": Way(library.run_ours, tiled),
            "libjpeg-turbo": Way(library.run_turbo, tiled),
            "libjpeg-turbo, tiles cut out": Way(library.run_turbo, cut),
        },
    }
    print(f"{len(originals.contents)} crops, {args.rounds} rounds, {name}\n")
    print("| files | what | decoder | ms per crop | ratio |\n|---|---|---|---|---|")
    seconds = measured(groups, args.rounds, args.side)
    for group, size in ((group, size) for group in groups for size in (0, args.side)):
        report(group, size, seconds[group, size], len(originals.contents))
    report("originals", args.side, from_python(originals, args), len(originals.contents))
    for group, ways in groups.items():
        num_same = same_pixels(ways, args.side)
        print(f"\n{group}: {num_same} of {len(originals.contents)} have the same pixels")


def bundled() -> Path | None:
    """Return libjpeg-turbo of the wheel of Pillow, if that is where Pillow comes from."""
    folder = Path(PIL.__file__).parent.parent / "pillow.libs"
    return next(iter(sorted(folder.glob("libjpeg-*.so.62*"))), None)


def built(libjpeg: Path | None, *, is_portable: bool) -> tuple[ctypes.CDLL, str]:
    """Compile crop_jpeg.c; return it, and the name of the libjpeg that it is linked with."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "crop_jpeg.so"
        linked = [str(libjpeg), f"-Wl,-rpath,{libjpeg.parent}"] if libjpeg else ["-ljpeg"]
        flags = (*FLAGS, "-DPORTABLE") if is_portable else FLAGS
        subprocess.run(["cc", *flags, str(SOURCE), *linked, "-lm", "-o", str(program)], check=True)
        library = ctypes.CDLL(str(program))
    for run in (library.run_ours, library.run_turbo):
        run.restype, run.argtypes = ctypes.c_double, [ctypes.POINTER(Work)]
    return library, libjpeg.name if libjpeg else "the system's libjpeg"


def files_of(folder: Path) -> tuple[Files, Files, Files]:
    """Return JPEGs that crop.c decodes: as they are, tiled, and the tiles that cover the crop."""
    originals, tiled, cut = Files([], []), Files([], []), Files([], [])
    num_files = sum(1 for _ in folder.rglob("*.[jJ][pP]*[gG]"))
    for content, tiles, uniforms_BD in drawn_crops(folder, num_files, seed=0):
        (facts,) = crop_decoder().measure([content])
        if facts is None or tiles is None:
            continue
        box = crop_box(
            (facts.width, facts.height),
            uniforms_BD[0].tolist(),
            scale=(0.08, 1),
            ratio=(3 / 4, 4 / 3),
        )
        small = None if (parsed := parse_tile_jpeg(tiles)) is None else parsed.cut(box)
        left, top = (small.left, small.top) if small else (0, 0)
        moved = (box[0] - left, box[1] - top, box[2] - left, box[3] - top)
        for files, one, place in (
            (originals, content, box),
            (tiled, tiles, box),
            (cut, small.content if small else tiles, moved),
        ):
            files.contents.append(one)
            files.boxes.append(place)
    return originals, tiled, cut


def measured(
    groups: dict[str, dict[str, Way]], num_rounds: int, side: int
) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Return CPU seconds of each round, of each group and size, of each way."""
    seconds: dict[tuple[str, int], dict[str, list[float]]] = {}
    for number in range(num_rounds):
        for group, ways in groups.items():
            for size in (0, side):
                names = list(ways) if number % 2 else list(ways)[::-1]
                for name in names:
                    taken = run(ways[name], size)[0]
                    of_way = seconds.setdefault((group, size), {name: [] for name in ways})
                    of_way[name].append(taken)
    return seconds


def run(way: Way, size: int) -> tuple[float, NDArray[np.uint8]]:
    """Return the CPU seconds of all crops, and the crops."""
    files, num = way.files, len(way.files.contents)
    crops = (ctypes.c_int32 * (10 * num))(
        *(number for box in files.boxes for number in (*box, size or 1, size or 1, 0, 0, 0, 0))
    )
    contents = (ctypes.c_char_p * num)(*files.contents)
    num_bytes = (ctypes.c_int64 * num)(*map(len, files.contents))
    images_BCHW = np.zeros((num, 3, size, size), dtype=np.uint8)
    is_done = np.zeros(num, dtype=np.uint8)
    pointers = (ctypes.cast(each, ctypes.c_void_p) for each in (contents, num_bytes, crops))
    work = Work(*pointers, num, size, images_BCHW.ctypes.data, is_done.ctypes.data)
    seconds = way.run(ctypes.byref(work))
    if not is_done.all():
        raise SystemExit(f"{num - int(is_done.sum())} crops were not decoded")
    return seconds, images_BCHW


def report(group: str, size: int, seconds: dict[str, list[float]], num_crops: int) -> None:
    """Print rows of the table; the ratio of a way is its time over that of crop.c."""
    what = f"decoded, resized to {size}" if size else "decoded"
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratios = [taken / ours for taken, ours in zip(times, first, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        milliseconds = 1000 * statistics.median(times) / num_crops
        print(f"| {group} | {what} | {name} | {milliseconds:.3f} | {spread} |")


def from_python(files: Files, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return CPU seconds of each round: called from Python, and without the extension."""
    decoder, side, num = (
        crop_decoder("portable" if args.portable else None),
        args.side,
        len(files[0]),
    )
    images_BCHW = np.zeros((CHUNK, 3, side, side), dtype=np.uint8)
    seconds: dict[str, list[float]] = {"crop.c": [], "without the extension": []}
    torch.set_num_threads(1)
    for _ in range(args.rounds):
        start = time.process_time()
        for first in range(0, num, CHUNK):
            contents = files.contents[first : first + CHUNK]
            crops = [Crop(box) for box in files.boxes[first : first + CHUNK]]
            decoder.crop(contents, crops, images_BCHW, range(len(crops)), "bilinear")
        middle = time.process_time()
        for content, box in zip(*files, strict=True):
            left, top, right, bottom = box
            pixels_HWC = np.array(decode_rgb(content))[top:bottom, left:right]
            resample(np.ascontiguousarray(pixels_HWC), (side, side), "bilinear")
        seconds["crop.c"].append(middle - start)
        seconds["without the extension"].append(time.process_time() - middle)
    return {f"{name}, from Python": times for name, times in seconds.items()}


def same_pixels(ways: dict[str, Way], side: int) -> int:
    """Return how many resized crops are the same in all *ways*."""
    first, *others = (run(way, side)[1] for way in ways.values())
    return int(sum(all_equal(first[i], [other[i] for other in others]) for i in range(len(first))))


def all_equal(image_CHW: NDArray[np.uint8], others: Sequence[NDArray[np.uint8]]) -> bool:
    """Return whether *others* are all equal to the image."""
    return all(np.array_equal(image_CHW, other) for other in others)


if __name__ == "__main__":
    main()
