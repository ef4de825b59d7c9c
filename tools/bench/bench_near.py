"""Near-duplicates: copies found, compared with pHash and dHash; seconds of the search.

    python tools/bench/bench_near.py images DIR [--json]    recall per transform (needs imagehash)
    python tools/bench/bench_near.py search [--num-images 1000000] [--json]

`images`: every image of DIR is copied by each transform, and the copies are compared with the
originals.  A method's threshold is the loosest at which no image, copied or not, matches another
one; its recall is the share of copies that match their original there.  Ours is run as `vit21k
leaks` runs it, search included, and reports what matched wrongly.

`search`: thumbnails with the spectrum of images (amplitude 1/f), among which copies are
planted; then all pairs are searched as `vit21k labels near-duplicates` does.
"""

import argparse
import io
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit21k.data.decode import decode_rgb
from vit21k.near.fingerprint import THUMB_SIDE, FingerprintSet, distance, hash_bits, keys, thumbnail
from vit21k.near.search import MAX_DISTANCE, PROBES, TABLES, find_pairs, near_hashes

Transform = Callable[[Image.Image, np.random.Generator], Image.Image]
FULL_SIZE = 14_197_122


def encoded(quality: int) -> Transform:
    """Encode as JPEG again."""

    def apply(image: Image.Image, _rng: np.random.Generator) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return decode_rgb(file.getvalue())

    return apply


def resized(scale: float) -> Transform:
    """Resize, bicubic."""
    return lambda image, _rng: image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.BICUBIC,
    )


def cropped(share: float) -> Transform:
    """Keep a window of this share of the width and height, anywhere."""

    def apply(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = round(image.width * share), round(image.height * share)
        left = int(rng.integers(0, image.width - width + 1))
        top = int(rng.integers(0, image.height - height + 1))
        return image.crop((left, top, left + width, top + height))

    return apply


def together(*transforms: Transform) -> Transform:
    """Apply one after the other."""

    def apply(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for transform in transforms:
            image = transform(image, rng)
        return image

    return apply


FLIP: Transform = lambda image, _rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)  # noqa: E731
TRANSFORMS: dict[str, Transform] = {
    **{f"JPEG, quality {quality}": encoded(quality) for quality in (95, 75, 50, 30)},
    **{f"resized x {scale}": resized(scale) for scale in (0.5, 0.75, 1.5, 2.0)},
    **{f"cropped by {round(100 - 100 * share)} %": cropped(share) for share in (0.99, 0.97, 0.95)},
    "grey": lambda image, _rng: image.convert("L").convert("RGB"),
    "mirrored": FLIP,
    "cropped by 5 %, mirrored, x 0.5, quality 50": together(
        cropped(0.95), FLIP, resized(0.5), encoded(50)
    ),
    "beyond: cropped by 10 %": cropped(0.90),
}


def bench_images(folder: Path) -> dict[str, Any]:
    """Return the recall of each method and transform."""
    import imagehash  # noqa: PLC0415 (only this half needs it)

    describe: dict[str, Callable[[Image.Image], Any]] = {
        "vit21k": thumbnail,
        "pHash": lambda image: imagehash.phash(image).hash.ravel(),
        "dHash": lambda image: imagehash.dhash(image).hash.ravel(),
    }
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found: dict[str, dict[str, list[np.ndarray]]] = {
        name: {transform: [] for transform in ("original", *TRANSFORMS)} for name in describe
    }
    for number, path in enumerate(files):
        image = decode_rgb(path.read_bytes())
        rng = np.random.default_rng(number)
        for transform in ("original", *TRANSFORMS):
            copy = TRANSFORMS[transform](image, rng) if transform in TRANSFORMS else image
            for name, function in describe.items():
                found[name][transform].append(function(copy))
    stacked = {
        name: {transform: np.stack(values) for transform, values in by_transform.items()}
        for name, by_transform in found.items()
    }
    result: dict[str, Any] = {"num_images": len(files), "vit21k": ours(stacked["vit21k"])}
    for name in ("pHash", "dHash"):
        result[name] = rival(stacked[name])
    return result


def rival(bits: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return threshold and recall of a hash that is compared by the bits in which it differs."""
    originals = bits["original"]
    nearest = 10**6
    for copies in bits.values():
        apart = (originals[:, None] != copies[None]).sum(axis=2)
        np.fill_diagonal(apart, nearest)
        nearest = min(nearest, int(apart.min()))
    threshold = nearest - 1
    recall = {
        transform: float(((originals != copies).sum(axis=1) <= threshold).mean())
        for transform, copies in bits.items()
    }
    return {"threshold": threshold, "recall": recall}


def ours(thumbs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the recall of the whole search, and how many wrong pairs it reports."""
    originals = as_set(thumbs["original"])
    recall, num_wrong = {}, len(find_pairs(originals)[0].one_P)
    for transform, copies in thumbs.items():
        pairs, _ = find_pairs(originals, as_set(copies))
        is_right = pairs.one_P == pairs.other_P
        recall[transform] = len(np.unique(pairs.one_P[is_right])) / len(originals)
        num_wrong += int((~is_right).sum())
    return {"num_wrong": num_wrong, "recall": recall}


def as_set(thumbs: np.ndarray) -> FingerprintSet:
    """Return a set of images of which only thumbnails are known."""
    nothing = np.zeros(len(thumbs), dtype="S16")
    return FingerprintSet(nothing, nothing, thumbs)


def bench_search(num_images: int) -> dict[str, Any]:
    """Return time, memory and recall of the search, and what 14.2 million would take."""
    thumbs, originals = planted_thumbs(num_images)
    chance = shared_key_chance(thumbs)
    before = reset_peak()
    started_at, cpu_before = time.monotonic(), time.process_time()
    pairs, counts = near_hashes(thumbs, None)
    seconds, cpu_seconds = time.monotonic() - started_at, time.process_time() - cpu_before
    grown = peak_bytes() - before
    copies = np.arange(num_images - len(originals), num_images)
    expected = set(zip(originals.tolist(), copies.tolist(), strict=True))
    found = set(zip(pairs.one_P.tolist(), pairs.other_P.tolist(), strict=True))
    scale = FULL_SIZE / num_images
    compared = chance * FULL_SIZE**2 * len(TABLES) * len(PROBES)
    return {
        "num_images": num_images,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "grown_bytes": grown,
        "num_planted": len(originals),
        "num_planted_found": len(expected & found),
        "num_others_found": len(found - expected),
        "num_compared": counts.num_compared,
        "num_overfull": counts.num_overfull,
        "chance_of_a_shared_key": chance,
        "full_size_cpu_seconds": cpu_seconds * scale * np.log(FULL_SIZE) / np.log(num_images),
        "full_size_compared_by_chance": compared,
        "full_size_compare_seconds": compared * seconds_to_compare(),
        "full_size_bytes": grown * scale,
    }


def seconds_to_compare(num_pairs: int = 1 << 21) -> float:
    """Return how long it takes to compare two hashes, among as many as there are in full."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, (4_000_000, 4), dtype=np.uint64)
    one, other = rng.integers(0, len(words), (2, num_pairs))
    started_at = time.process_time()
    (distance(words[one], words[other]) <= MAX_DISTANCE).sum()
    return (time.process_time() - started_at) / num_pairs


def planted_thumbs(num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return thumbnails of which the last tenth are copies, and the rows of their originals."""
    rng = np.random.default_rng(0)
    num_copies = num_images // 10
    thumbs = np.empty((num_images, THUMB_SIDE, THUMB_SIDE), dtype=np.uint8)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(THUMB_SIDE)] * 2))
    amplitude = 1 / np.maximum(frequency, 1 / THUMB_SIDE)
    for start in range(0, num_images - num_copies, 8192):
        rows = slice(start, min(start + 8192, num_images - num_copies))
        noise = rng.standard_normal((rows.stop - start, THUMB_SIDE, THUMB_SIDE), dtype=np.float32)
        thumbs[rows] = stretched(np.fft.ifft2(np.fft.fft2(noise) * amplitude).real)
    originals = np.sort(rng.choice(num_images - num_copies, num_copies, replace=False))
    for start in range(0, num_copies, 8192):
        some = thumbs[originals[start : start + 8192]].astype(np.float32)
        some[::2] = some[::2, :, ::-1]  # every other one is mirrored
        some += rng.normal(0, 2, some.shape)
        first = num_images - num_copies + start
        thumbs[first : first + len(some)] = some.clip(0, 255)
    return thumbs, originals


def stretched(values: np.ndarray) -> np.ndarray:
    """Return images of mean 128 and deviation 50."""
    values -= values.mean(axis=(1, 2), keepdims=True)
    values *= 50 / values.std(axis=(1, 2), keepdims=True)
    return np.asarray((values + 128).clip(0, 255), dtype=np.uint8)


def shared_key_chance(thumbs: np.ndarray, num_rows: int = 20_000) -> float:
    """Return how often two different images share the key of a table."""
    words = hash_bits(thumbs[:num_rows])
    shared = 0
    for table in TABLES:
        _, counts = np.unique(keys(words, table), return_counts=True)
        shared += int((counts * (counts - 1)).sum())
    return shared / (len(TABLES) * len(words) * (len(words) - 1))


def reset_peak() -> int:
    """Start counting the peak anew; return the bytes that the process holds now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has held since `reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def rows_of_table(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table of `bench_images`."""
    yield "| copies | vit21k | pHash | dHash |"
    yield "|---|---|---|---|"
    for transform in TRANSFORMS:
        cells = [f"{100 * result[name]['recall'][transform]:.1f} %" for name in METHODS]
        yield f"| {transform} | {' | '.join(cells)} |"


METHODS = ("vit21k", "pHash", "dHash")


def main() -> int:
    """Run one of the two; print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images")
    images.add_argument("folder", type=Path)
    search = commands.add_parser("search")
    search.add_argument("--num-images", type=int, default=1_000_000)
    for command in (images, search):
        command.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.command == "search":
        result = bench_search(asked.num_images)
        lines = [f"{name}: {value:,.6g}" for name, value in result.items()]
        lines.append(f"views x tables: {len(PROBES)} x {len(TABLES)}; full size: {FULL_SIZE:,}")
    else:
        result = bench_images(asked.folder)
        lines = [
            f"{result['num_images']} images; wrong pairs of vit21k: "
            f"{result['vit21k']['num_wrong']}; thresholds: "
            + ", ".join(f"{name} {result[name]['threshold']}" for name in METHODS[1:]),
            *rows_of_table(result),
        ]
    print(json.dumps(result, indent=2) if asked.json else "\n".join(lines))
    print(f"{platform.machine()}, Python {platform.python_version()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
