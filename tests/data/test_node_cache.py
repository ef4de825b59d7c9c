"""`data.node_cache`: images on a disk of the node, shared, bounded, and right after a crash."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vit21k.data.node_cache import NodeCache

ROWS = 200
CONTENTS = [random.Random(row).randbytes(1000 + 37 * row) for row in range(ROWS)]
LIMIT = 64 << 20
Open = Callable[..., NodeCache]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """A function that opens a cache in `tmp_path`; all are closed at the end."""
    caches: list[NodeCache] = []

    def open_cache(max_bytes: int = LIMIT, **identity: Any) -> NodeCache:
        warnings: list[str] = identity.pop("warnings", [])
        caches.append(NodeCache(tmp_path, max_bytes, identity, ROWS, warnings.append))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


def fill(cache: NodeCache) -> None:
    for first in range(0, ROWS, 20):
        cache.put(dict(enumerate(CONTENTS[first : first + 20], first)))


def right_rows(cache: NodeCache) -> int:
    """Return how many images are cached; each must be right."""
    found = [(row, cache.get(row)) for row in range(ROWS)]
    assert all(content in (None, CONTENTS[row]) for row, content in found)
    return sum(content is not None for _, content in found)


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_contents_are_there_for_the_next_run(opened: Open) -> None:
    first = opened(url="a")
    assert first.get(7) is None
    fill(first)
    first.close()

    second = opened(url="a")

    assert right_rows(second) == ROWS
    assert second.have(np.arange(ROWS)).all()


def test_processes_see_what_others_put(opened: Open) -> None:
    one, other = opened(url="a"), opened(url="a")

    for row in range(ROWS):
        (one, other)[row % 2].put({row: CONTENTS[row]})

    assert right_rows(one) == right_rows(other) == ROWS


def test_another_version_of_the_source_has_a_cache_of_its_own(opened: Open) -> None:
    fill(opened(url="a", facts={"x.tar": [1, "tag"]}))

    assert right_rows(opened(url="a", facts={"x.tar": [1, "other"]})) == 0


def test_the_limit_holds_and_what_is_there_stays(opened: Open, tmp_path: Path) -> None:
    cache = opened(max_bytes=(2 << 20) + 8 * ROWS + 4096, url="a")

    for row in range(ROWS):
        cache.put({row: bytes([row]) * 60_000})

    assert num_bytes(tmp_path) <= (2 << 20) + 8 * ROWS + 4096
    cached = [cache.get(row) is not None for row in range(ROWS)]
    assert cached == [True] * sum(cached) + [False] * (ROWS - sum(cached))
    assert sum(cached) == 2 * ((1 << 20) // 60_064)


def test_a_source_that_nobody_uses_makes_room(opened: Open, tmp_path: Path) -> None:
    limit = (1 << 20) + 2 * 8 * ROWS + 8192
    old = opened(max_bytes=limit, url="old")
    fill(old)
    old.close()
    new = opened(max_bytes=limit, url="new")

    fill(new)

    assert right_rows(new) > 0
    assert not old.folder.exists()
    assert num_bytes(tmp_path) <= limit


def test_a_source_in_use_is_not_evicted(opened: Open) -> None:
    limit = (1 << 20) + 2 * 8 * ROWS + 8192
    old, new = opened(max_bytes=limit, url="old"), opened(max_bytes=limit, url="new")
    fill(old)
    before = right_rows(old)

    fill(new)

    assert right_rows(old) == before > 0
    assert right_rows(new) == 0


def test_a_lower_limit_removes_images(opened: Open, tmp_path: Path) -> None:
    first = opened(url="a")
    for row in range(ROWS):
        first.put({row: bytes(60_000)})
    first.close()
    assert num_bytes(tmp_path) > 12 << 20

    second = opened(max_bytes=3 << 20, url="a")

    assert num_bytes(tmp_path) <= 3 << 20
    assert 0 < sum(second.get(row) is not None for row in range(ROWS)) < ROWS


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_never_read(opened: Open, seed: int) -> None:
    cache = opened(url="a")
    fill(cache)
    drawn = random.Random(seed)
    files = [*cache.folder.glob("*.segment"), cache.folder / "index"]
    for path in files:
        with path.open("r+b") as file:
            for _ in range(40):
                file.seek(drawn.randrange(path.stat().st_size if "index" in path.name else 700_000))
                file.write(drawn.randbytes(drawn.choice([1, 8, 512])))

    before = right_rows(cache)
    fill(cache)

    assert before < ROWS
    assert right_rows(cache) == ROWS


def test_a_segment_that_is_gone_is_read_from_the_source_again(opened: Open) -> None:
    first = opened(url="a")
    fill(first)
    first.close()
    for path in first.folder.glob("*.segment"):
        path.unlink()

    second = opened(url="a")

    assert right_rows(second) == 0
    fill(second)
    assert right_rows(second) == ROWS


def test_a_full_disk_warns_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    cache = opened(url="a", warnings=warnings)

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    fill(cache)

    assert right_rows(cache) == 0
    [warning] = warnings
    assert "No space left on device" in warning


def test_threads_share_a_cache(opened: Open) -> None:
    cache = opened(url="a")
    threads = [threading.Thread(target=fill, args=(cache,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert right_rows(cache) == ROWS


FILL = """
import sys, pathlib
sys.path.insert(0, sys.argv[2])
from test_node_cache import CONTENTS, LIMIT, ROWS
from vit21k.data.node_cache import NodeCache
cache = NodeCache(pathlib.Path(sys.argv[1]), LIMIT, {"url": "a"}, ROWS)
while True:
    for row, content in enumerate(CONTENTS):
        cache.put({row: content})
        print(row, flush=True)
"""


def test_a_process_that_is_killed_leaves_only_right_images(opened: Open, tmp_path: Path) -> None:
    for num_put in (3, 150, 350):
        arguments = [sys.executable, "-c", FILL, str(tmp_path), str(Path(__file__).parent)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as filling:
            assert filling.stdout
            for _ in range(num_put):
                filling.stdout.readline()
            filling.send_signal(signal.SIGKILL)

    cache = opened(url="a")

    assert right_rows(cache) == ROWS


def test_segments_that_others_left_are_filled_up(opened: Open) -> None:
    for row in range(ROWS):
        cache = opened(url="a")
        cache.put({row: CONTENTS[row]})
        cache.close()

    assert right_rows(opened(url="a")) == ROWS
    assert len(list(cache.folder.glob("*.segment"))) <= 2
