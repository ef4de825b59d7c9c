"""`prep.ray`: on a real cluster of this machine, with workers that die."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeTree, needs_extra

ray = needs_extra("ray")

from vit21k.errors import Vit21kError
from vit21k.prep import ray as ray_engine_module
from vit21k.prep import ray as ray_module
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.ray import RayCluster
from vit21k.prep.relabel import relabel
from vit21k.prep.shards import Shard, merge_shards

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A cluster of two worker processes."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def _workers_at_work() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::_digest_chunks"):
                found.append(int(folder.name))
    return found


def test_a_tree_hashed_on_ray_gives_the_bytes_of_a_local_run(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        f"images/n{number % 40}/{number}.JPEG": b"%d" % (number % 999) for number in range(3000)
    }
    root = make_tree({**files, "images/n3/empty.JPEG": b"", "stray.jpg": b"", "n1/x.txt": b""})
    monkeypatch.setattr(ray_engine_module, "_CHUNKS_PER_TASK", 3)
    hash_tree(root, tmp_path / "local")

    summary = hash_tree(root, tmp_path / "ray", engine=RayCluster().hash_chunks)

    assert summary.num_files == 3000
    assert _bytes_of(tmp_path / "ray") == _bytes_of(tmp_path / "local")


def test_shards_may_be_hashed_on_ray(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({f"n{number % 9}/{number}.JPEG": b"%d" % number for number in range(90)})
    hash_tree(root, tmp_path / "local")
    shards = [Shard(1, 2), Shard(2, 2)]
    for shard in shards:
        hash_tree(root, tmp_path / "m", shard=shard, engine=RayCluster().hash_chunks)

    merge_shards([shard.folder(tmp_path / "m") for shard in shards], tmp_path / "m")

    assert _bytes_of(tmp_path / "m") == _bytes_of(tmp_path / "local")


def test_a_worker_that_is_killed_in_the_middle_does_not_change_a_byte(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree({f"n{number:02}/x.JPEG": b"%d" % number for number in range(40)})
    for path in root.rglob("*.JPEG"):
        os.truncate(path, 100_000_000)  # long to read, and nothing on the disk
    monkeypatch.setattr(ray_engine_module, "_CHUNKS_PER_TASK", 1)
    hash_tree(root, tmp_path / "local", num_workers=2)
    killed: set[int] = set()

    is_done = threading.Event()

    def kill_one() -> None:
        while not killed and not is_done.wait(0.01):
            for worker in _workers_at_work()[:1]:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)

    killer = threading.Thread(target=kill_one)
    killer.start()
    hash_tree(root, tmp_path / "ray", engine=RayCluster().hash_chunks)
    is_done.set()
    killer.join()

    assert len(killed) == 1
    assert _bytes_of(tmp_path / "ray") == _bytes_of(tmp_path / "local")


@pytest.mark.parametrize("part_rows", [150, 10_000])
def test_relabelled_on_ray_in_parts_by_digest_prefix_gives_the_bytes_of_a_local_run(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    files = {f"n{n % 13}/{n}.JPEG": b"%d" % (n * n % 300) for n in range(900)}
    root = make_tree({**files, **{f"n{n}/placeholder.JPEG": b"none" for n in range(13)}})
    monkeypatch.setattr("vit21k.manifest.writer.ROW_GROUP_ROWS", 50)
    monkeypatch.setattr(ray_module, "_ROW_GROUPS_PER_TASK", 3)
    for name in ("local", "ray"):
        hash_tree(root, tmp_path / name)
    local = relabel(tmp_path / "local", max_labels=9)

    summary = relabel(tmp_path / "ray", max_labels=9, cluster=RayCluster(part_rows=part_rows))

    assert summary == local
    assert summary.num_overlabelled_files >= 13
    assert summary.num_copies > 50
    assert _bytes_of(tmp_path / "ray") == _bytes_of(tmp_path / "local")


def test_what_goes_wrong_on_a_worker_is_raised_here(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(ray_engine_module, "_digest_chunks", fail)

    with pytest.raises(OSError, match="Too many open files"):
        hash_tree(tiny_tree, tmp_path / "m", engine=RayCluster().hash_chunks)

    assert not list((tmp_path / "m").glob("*.parquet"))


def test_a_cluster_that_is_not_there_is_refused(tiny_tree: Path, tmp_path: Path) -> None:
    ray.shutdown()

    with pytest.raises(Vit21kError, match="no Ray cluster"):
        hash_tree(tiny_tree, tmp_path / "m", engine=RayCluster("127.0.0.1:1").hash_chunks)
