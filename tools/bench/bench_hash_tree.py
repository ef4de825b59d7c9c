"""The tree of JPEGs that `bench_hash.py` measures on.

    python tools/bench/bench_hash_tree.py TREE NUM_FILES MEAN_BYTES IMAGES IS_DENSE

It prints the bytes of the tree, and how many of its files are copies.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

_FRAME = b"\xff\xc0\0\x11\x08\x01\x77\x01\xf4\x03\x01\x11\0\x02\x11\1\x03\x11\1"
_SCAN = b"\xff\xda\0\x0c\x03\1\0\2\x11\3\x11\0\x3f\0"
_END = b"\xff\xd9"
_COMMENT_BYTES = 16
_COPY_EVERY = 12
_FILES_IN_CLASS = 120
_BLOCK = 8192


class TreePlan(NamedTuple):
    """What tree to make.

    Attributes:
        num_files: How many files.
        mean_bytes: Of synthetic files.
        images: Folder of JPEGs to make it of; None: random bytes.
        is_dense: Make all sizes multiples of 8 KiB.
    """

    num_files: int
    mean_bytes: int
    images: Path | None
    is_dense: bool


def make_tree(root: Path, plan: TreePlan) -> tuple[int, int]:
    """Write the tree; return its bytes, and how many of its files are copies of others."""
    rng = np.random.default_rng(0)
    pool = _real(plan.images) if plan.images else _synthetic(rng, plan.mean_bytes)
    num_bytes = num_copies = 0
    written: list[Path] = []
    for number in range(plan.num_files):
        folder = root / f"n{number // _FILES_IN_CLASS:08}"
        if number % _FILES_IN_CLASS == 0:
            folder.mkdir(parents=True)
        path = folder / f"{folder.name}_{number}.JPEG"
        if number % _COPY_EVERY == _COPY_EVERY - 1:
            content = written[int(rng.integers(len(written)))].read_bytes()
            num_copies += 1
        else:
            content = _unlike_others(pool[int(rng.integers(len(pool)))], rng, plan)
            written.append(path)
        path.write_bytes(content)
        num_bytes += len(content)
    return num_bytes, num_copies


def _unlike_others(content: bytes, rng: np.random.Generator, plan: TreePlan) -> bytes:
    """Return a JPEG with a comment that no other has, and with a size of its own."""
    length = _COMMENT_BYTES + int(rng.integers(0, 512))
    if plan.is_dense:
        length = _COMMENT_BYTES + -(len(content) + 4 + _COMMENT_BYTES) % _BLOCK
    comment = rng.bytes(_COMMENT_BYTES) + bytes(length - _COMMENT_BYTES)
    return content[:2] + b"\xff\xfe" + (2 + length).to_bytes(2, "big") + comment + content[2:]


def _real(images: Path) -> list[bytes]:
    found = [path.read_bytes() for path in sorted(images.rglob("*.JPEG"))]
    return [content for content in found if content.endswith(_END)]


def _synthetic(rng: np.random.Generator, mean_bytes: int) -> list[bytes]:
    sizes = rng.lognormal(np.log(mean_bytes) - 0.32, 0.8, 500).astype(int)
    return [
        b"\xff\xd8" + _FRAME + _SCAN + rng.bytes(size).replace(b"\xff", b"\xfe") + _END
        for size in sizes.tolist()
    ]


def main() -> None:
    """Make the tree that the arguments describe."""
    root, num_files, mean_bytes, images, is_dense = sys.argv[1:]
    plan = TreePlan(
        int(num_files), int(mean_bytes), Path(images) if images else None, is_dense == "True"
    )
    print(json.dumps(make_tree(Path(root), plan)))


if __name__ == "__main__":
    main()
