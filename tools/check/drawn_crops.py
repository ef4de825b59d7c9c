"""What the checks of crops go through: the JPEGs of a folder, each tiled, and crops drawn of it."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.data.rng import uniform_values
from vit21k.data.transforms import TrainTransform
from vit21k.pack.tiles import NotTileableError, tile_jpeg


class Drawn(NamedTuple):
    """An image, and crops of it, drawn as training draws them."""

    content: bytes
    tiled: bytes | None
    """As `vit21k pack --lossless` tiles it; None: it cannot be."""
    uniforms_BD: NDArray[np.float64]


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all such checks."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def drawn_crops(folder: Path, num_crops: int, seed: int) -> Iterator[Drawn]:
    """Yield the JPEGs below *folder*, with about equally many crops of each, *num_crops* in all."""
    paths = sorted(path for path in folder.rglob("*.[jJ][pP]*[gG]"))
    per_image = -(-num_crops // max(len(paths), 1))
    for number, path in enumerate(paths):
        first = per_image * number
        positions_B = np.arange(first, min(first + per_image, num_crops), dtype=np.int64)
        if not len(positions_B):
            return
        content = path.read_bytes()
        try:
            tiled = tile_jpeg(content)
        except NotTileableError:
            tiled = None
        yield Drawn(content, tiled, uniform_values(seed, positions_B, TrainTransform.num_uniforms))


def report(counts: Mapping[str, int]) -> None:
    """Print all counts in a line."""
    print(" | ".join(f"{name} {count:,}" for name, count in counts.items()))
