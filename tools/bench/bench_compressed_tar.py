"""hash of a .tar.gz, with rapidgzip and by zlib, compared with the .tar and bare decompression.

    python tools/bench/bench_compressed_tar.py IMAGES.tar [--rounds 4]

Needs `pip install 'vit21k[gzip]'`.  Rounds are interleaved; everything is in the page cache.  Then
images are read at random through the index.
"""

import argparse
import gzip
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from vit21k.prep.hash_tree import hash_tree
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.gzip_tar import GzipReader, made_index

NUM_READS, IMAGE_BYTES = 200, 100_000


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _by_zlib(packed: Path, manifests: Path) -> None:
    with patch("vit21k.sources.gzip_tar.rapidgzip", lambda: None):
        hash_tree(packed, manifests, is_fresh=True)


def _decompress(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _read_at_random(packed: Path) -> float:
    """Return seconds for each image."""
    file = ArchiveFile(str(packed))
    index = made_index(file)
    if index is None:
        sys.exit("rapidgzip is not installed, or does not read this file")
    reader = GzipReader(file.read_at, index)
    rng = random.Random(0)
    offsets = [rng.randrange(file.num_bytes - IMAGE_BYTES) for _ in range(NUM_READS)]
    return _seconds(lambda: [reader.read(at, IMAGE_BYTES) for at in offsets]) / NUM_READS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tar", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packed, manifests = Path(folder, "a/a.tar.gz"), Path(folder, "m")
        packed.parent.mkdir()
        with args.tar.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        methods = {
            "hash .tar": lambda: hash_tree(args.tar, manifests, is_fresh=True),
            "hash .tar.gz, rapidgzip": lambda: hash_tree(packed, manifests, is_fresh=True),
            "hash .tar.gz, zlib": lambda: _by_zlib(packed, manifests),
            "rapidgzip -d -P 2": lambda: _decompress(
                "rapidgzip", "-d", "-P", "2", "-c", str(packed)
            ),
            "gzip -d": lambda: _decompress("gzip", "-dc", str(packed)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(args.rounds):
            for name, method in methods.items():
                seconds[name].append(_seconds(method))
        for name, values in seconds.items():
            print(f"{name:25} {statistics.median(values):6.2f} s")
        print(f"read one image at random  {_read_at_random(packed) * 1000:6.2f} ms")


if __name__ == "__main__":
    main()
