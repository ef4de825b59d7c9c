"""One tree, one set of manifests: whatever the workers, the scan order, the locale, the shards."""

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import DIGESTS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.plsc import export_lists
from vit21k.prep.relabel import relabel
from vit21k.prep.shards import Shard, merge_shards
from vit21k.prep.split import make_val
from vit21k.sources import folders as walk_module

pytestmark = pytest.mark.slow

WORKERS, ORDERS, SHARDS = (1, 2, 8), (None, 1, 2), (1, 5)


def _make_tree(root: Path) -> None:
    for k, name in enumerate(("images/n1", "images/n2/deep", "images/N2", "images/\u0131i", "n3")):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(30):
            (folder / f"{number}.JPEG").write_bytes(b"%d" % (number * (k % 3)))
        (folder / "README").touch()
        (folder / os.fsdecode(b"\xe9.jpg")).touch()
        (folder / "\u00e9.jpg").write_bytes(b"accent")
    (root / "images" / "n1" / "empty.jpg").touch()


class _Scan:
    """`os.scandir` in a random order; None: as the file system has it."""

    scandir = staticmethod(os.scandir)

    def __init__(self, path: bytes, seed: int | None) -> None:
        with self.scandir(path) as entries:
            self._entries = list(entries)
        if seed is not None:
            random.Random(seed).shuffle(self._entries)

    def __enter__(self) -> Iterator[os.DirEntry[bytes]]:
        return iter(self._entries)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...


def _prepare(root: Path, out: Path, *, num_workers: int, num_shards: int) -> None:
    if num_shards == 1:
        hash_tree(root, out, num_workers=num_workers, label_from="folder")
    else:
        shards = [Shard(number, num_shards) for number in range(1, num_shards + 1)]
        random.Random(num_workers).shuffle(shards)
        for shard in shards:
            hash_tree(root, out, num_workers=num_workers, shard=shard, label_from="folder")
        merge_shards([shard.folder(out) for shard in shards], out)
    relabel(out)
    make_val(out, per_class=3, seed=7)
    export_lists(out, out / "lists", allow_blanks=True)


def run_all(root: Path, home: Path) -> None:
    """Print the digests of all files of each way to prepare *root*; in whatever locale this is."""
    for num_workers, order, num_shards in itertools.product(WORKERS, ORDERS, SHARDS):
        walk_module.os.scandir = lambda path, order=order: _Scan(path, order)
        out = home / "m"
        shutil.rmtree(out, ignore_errors=True)
        _prepare(root, out, num_workers=num_workers, num_shards=num_shards)
        files = sorted([*out.glob("*.parquet"), *(out / "lists").iterdir()])
        digests = [hashlib.md5(path.read_bytes()).hexdigest() for path in files]
        sys.stdout.write(" ".join(digests) + "\n")


def _locales(home: Path) -> list[dict[str, str]]:
    """Return C.UTF-8, and another one: Turkish (whose i is not I) where it can be made."""
    command = ["localedef", "-i", "tr_TR", "-f", "ISO-8859-9", str(home / "tr_TR")]
    if shutil.which("localedef"):
        subprocess.run(command, check=False, capture_output=True)
    other = (
        {"LC_ALL": "tr_TR", "LOCPATH": str(home)} if (home / "tr_TR").exists() else {"LC_ALL": "C"}
    )
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return [{"LC_ALL": "C.UTF-8"}, {**other, **plain}]


def _run_in(environment: dict[str, str], root: Path, home: Path) -> list[str]:
    command = [sys.executable, __file__, str(root), str(home)]
    environment = {**os.environ, **environment}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_manifests_depend_on_the_tree_alone(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    _make_tree(root)
    printed = [_run_in(environment, root, tmp_path) for environment in _locales(tmp_path)]

    assert [len(lines) for lines in printed] == [len(WORKERS) * len(ORDERS) * len(SHARDS)] * 2
    assert len(set(printed[0] + printed[1])) == 1
    assert len(printed[0][0].split()) >= 9
    assert open_manifest(tmp_path / "m", DIGESTS).num_rows == 155


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), Path(sys.argv[2]))
