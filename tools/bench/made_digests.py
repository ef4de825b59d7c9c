"""A digests manifest as large as ImageNet-21K's, made up; and the md5sum file of the same files.

Counts are those of ImageNet-21K: of 14,197,122 files, 1,194,059 are copies of 661,330 others, so
that 13,003,063 images remain; 21,841 classes of uneven size.  Digests are random, which is what
digests look like.

Legend: N files, K classes, C files of one class.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.manifest.io import ManifestHeader, open_manifest
from vit21k.manifest.schema import DIGEST_BYTES, DIGESTS, PROBLEMS
from vit21k.manifest.writer import manifest_writer

NUM_FILES = 14_197_122
ROOT = "/data/imagenet21k"

_NUM_CLASSES = 21_841
_NUM_GROUPS = 661_330
_NUM_COPIES = 1_194_059
_NUM_CANDIDATES = 10_000
"""Of a class, of which about a tenth was kept (Fei-Fei et al. 2009, doi:10.1167/9.8.1037)."""
_CANDIDATES_PER_IMAGE = 10
_SIDES = ((500, 375), (375, 500), (500, 333), (640, 480), (333, 500), (1024, 768))


def make_digests(folder: Path, num_files: int, *, seed: int = 0) -> None:
    """Write `digests.parquet`, and an empty `problems.parquet`, to *folder*."""
    rng = np.random.default_rng(seed)
    sizes_K = _class_sizes(rng, num_files)
    wnids = [f"n{number:08}" for number in sorted(rng.choice(15_000_000, len(sizes_K), False))]
    digests_N2 = _digests(rng, num_files)
    header = ManifestHeader(algorithm="md5", root=ROOT)
    with manifest_writer(PROBLEMS, folder, header), manifest_writer(DIGESTS, folder, header) as out:
        row = 0
        for wnid, size in zip(wnids, sizes_K.tolist(), strict=True):
            out.write(_rows(rng, wnid, digests_N2[row : row + size]))
            row += size


def _class_sizes(rng: np.random.Generator, num_files: int) -> NDArray[np.int64]:
    num_classes = max(num_files * _NUM_CLASSES // NUM_FILES, 1)
    weight_K = np.exp(rng.normal(0, 0.6, num_classes))
    sizes_K: NDArray[np.int64] = (weight_K / weight_K.sum() * num_files).astype(np.int64)
    sizes_K = np.maximum(1, sizes_K)
    sizes_K[sizes_K.argmax()] += num_files - sizes_K.sum()
    return sizes_K


def _digests(rng: np.random.Generator, num_files: int) -> NDArray[np.uint64]:
    """Return random digests, as two numbers each; some are those of other files."""
    digests_N2 = rng.integers(0, 2**64, (num_files, 2), dtype=np.uint64)
    num_groups = num_files * _NUM_GROUPS // NUM_FILES
    num_copies = num_files * _NUM_COPIES // NUM_FILES
    rows = rng.permutation(num_files)[: num_groups + num_copies]
    more = rng.integers(0, max(num_groups, 1), num_copies - num_groups)
    copied = np.concatenate([np.arange(num_groups), more])
    digests_N2[rows[num_groups:]] = digests_N2[rows[:num_groups][copied]]
    return digests_N2


def _rows(rng: np.random.Generator, wnid: str, digests_C2: NDArray[np.uint64]) -> pa.Table:
    size = len(digests_C2)
    num_candidates = max(_NUM_CANDIDATES, _CANDIDATES_PER_IMAGE * size)
    numbers = rng.choice(num_candidates, size, replace=False).tolist()
    width_C, height_C = rng.choice(np.array(_SIDES), size, p=(0.4, 0.2, 0.15, 0.1, 0.1, 0.05)).T
    digests = pa.py_buffer(np.ascontiguousarray(digests_C2))
    known = {
        "path": sorted(f"images/{wnid}/{wnid}_{number}.JPEG" for number in numbers),
        "wnid": [wnid] * size,
        "num_bytes": np.exp(rng.normal(11.3, 0.5, size)).astype(np.int64) + 100,
        "mtime_ns": 1_300_000_000_000_000_000 + rng.integers(0, 10**9, size) * 10**9,
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), size, [None, digests]
        ),
        "content_digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), size, [None, pa.py_buffer(np.ascontiguousarray(~digests_C2))]
        ),
        "width": width_C,
        "height": height_C,
        "components": np.full(size, 3),
        "format": ["jpeg"] * size,
        "flags": np.zeros(size, dtype=np.int64),
    }
    return pa.table([_column(known, field, size) for field in DIGESTS.schema], DIGESTS.schema)


def _column(known: dict[str, Any], field: pa.Field, size: int) -> pa.Array:
    if field.name not in known:
        return pa.nulls(size, field.type)
    values = known[field.name]
    return values if isinstance(values, pa.Array) else pa.array(values).cast(field.type)


def make_md5sum(folder: Path, md5sum: Path) -> None:
    """Write what `md5sum` would have printed of the files in `digests.parquet` of *folder*."""
    digests = open_manifest(folder, DIGESTS)
    with md5sum.open("wb") as file:
        for rows in digests.batches(["digest", "path"]):
            file.write(b"".join(_lines(rows["digest"].to_pylist(), rows["path"].to_pylist())))


def _lines(digests: Sequence[bytes], paths: Sequence[str]) -> Iterator[bytes]:
    for digest, path in zip(digests, paths, strict=True):
        yield f"{digest.hex()}  {ROOT}/{path}\n".encode()
