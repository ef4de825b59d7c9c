"""Threads that hash chunks: few for fast files, many for slow ones."""

import os
import threading
import time
from pathlib import Path

import pytest

from vit21k.prep import hash_chunks
from vit21k.prep.hash_chunks import (
    _PATIENCE,
    ChunkHasher,
    HashedChunk,
    _Pace,
    hash_in_threads,
)
from vit21k.prep.hash_tree import chunks_of
from vit21k.sources.folders import Chunk


class _Recorder:
    """Takes *seconds* a chunk, and notes who did it and whether it was a prefetch."""

    def __init__(self, seconds: float, *, is_concurrent: bool = False) -> None:
        self.is_concurrent = is_concurrent
        self.is_remote = False
        self.is_stopped = self.prefetches = False
        self.seconds = seconds
        self.threads: set[str] = set()
        self.asked: list[bool] = []

    def __call__(self, chunk: Chunk) -> HashedChunk:
        self.threads.add(threading.current_thread().name)
        self.asked.append(self.prefetches)
        end = time.thread_time() + 1e-4
        while time.thread_time() < end:
            pass
        time.sleep(self.seconds)
        return HashedChunk(chunk.folder.decode(), 0.0)


def _chunks(number: int) -> list[Chunk]:
    return [Chunk(b"%03d" % index, [], 0.0) for index in range(number)]


def test_slow_files_are_hashed_by_many_threads_that_prefetch_and_in_order() -> None:
    recorder = _Recorder(seconds=0.03)

    done = list(hash_in_threads(recorder, iter(_chunks(40)), 4))

    assert [chunk.wnid for chunk in done] == [f"{index:03d}" for index in range(40)]
    assert recorder.asked[0] is False
    assert all(recorder.asked[1:])
    assert len(recorder.threads) == 5  # the first chunk was tried by the caller's own


def test_fast_files_are_hashed_by_as_many_threads_as_there_are_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hash_chunks.machine, "num_threads", lambda: 3)
    monkeypatch.setattr(hash_chunks, "_WAITS", 1e9)
    recorder = _Recorder(seconds=0.01, is_concurrent=True)

    done = list(hash_in_threads(recorder, iter(_chunks(40)), 8))

    assert [chunk.wnid for chunk in done] == [f"{index:03d}" for index in range(40)]
    assert not any(recorder.asked)
    assert len(recorder.threads) == 3


@pytest.mark.parametrize("waited", [(0.01, 0.01, 8), (0.05, 0.01, 0)])
def test_one_thread_takes_over_again_once_nothing_is_read_from_the_disk(
    waited: tuple[float, float, int],
) -> None:
    pace = _Pace(num_workers=2)
    at_hand = 0.01, 0.01, 0
    pace.note(*at_hand)
    assert not pace.is_waiting
    pace.note(*waited)
    assert pace.is_waiting

    for _ in range(_PATIENCE):
        pace.note(*at_hand)
    assert pace.is_waiting
    for _ in range(_PATIENCE + 1):
        pace.note(*at_hand)
    assert not pace.is_waiting


def test_what_takes_little_is_at_hand_however_long_the_lock_was_waited_for() -> None:
    pace = _Pace(num_workers=2)
    pace.note(0.005, 0.0005, 0)

    assert not pace.is_waiting


def test_files_of_another_machine_are_always_slow() -> None:
    pace = _Pace(num_workers=2, is_remote=True)
    for _ in range(3 * _PATIENCE):
        pace.note(0.01, 0.01, 0)

    assert pace.is_waiting


def test_prefetching_changes_no_digest(tmp_path: Path) -> None:
    folder = tmp_path / "n00000001"
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.jpg").write_bytes(bytes([index]) * (index * 3_000 + 1))
    (folder / "5.jpg").symlink_to("nothing")
    hasher = ChunkHasher(os.fsencode(tmp_path), algorithm="xxh3_128")
    plain = [hasher(chunk) for chunk in chunks_of(hasher)]
    hasher.prefetches = True

    ahead = [hasher(chunk) for chunk in chunks_of(hasher)]

    assert [(chunk.paths, chunk.files) for chunk in ahead] == [
        (chunk.paths, chunk.files) for chunk in plain
    ]
    assert len(ahead[0].files) == 5
