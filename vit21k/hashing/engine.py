"""Where chunks are digested: by a pool of threads, or wherever another engine does.

Performance: with the compiled extension, threads work side by side.  What lies in the page cache
keeps as many of them busy as there are processors; what lies on a disk is waited for by more, which
ask for all files of a chunk before they read the first one.  Which of the two it is shows while it
is done, and `_Pace` says so.

Without it, a single thread digests what lies in the page cache: more of them would
hand the interpreter's lock to and fro for every file, which doubles the CPU time and the wall time
(20,000 files of 115 kB: 0.5 s, or 1.1 s with 16 threads).
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from vit21k import machine
from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.walk import Chunk

_NUM_WORKERS = 8
_NUM_LOCKED_WORKERS = 2  # who mostly hold the interpreter's lock are in each other's way
_NUM_REMOTE_WORKERS = 32  # opening a file is a message to another machine, and an answer

_CHUNKS_PER_WORKER = 4
_WAITS, _WAITING_S = 3.0, 0.02
"""Wall time of a chunk over its CPU time from which on its files were waited for, and that long at
least: less is the interpreter's lock."""
_PATIENCE = 16
"""Chunks for each worker without a read of the disk, after which they are taken for at hand."""

Engine = Callable[[ChunkDigester, Iterator[Chunk], int], Iterator[DigestedChunk]]
"""Yields what became of each chunk, in order: of (digester, chunks, number of workers)."""


class Digester(Protocol):
    """What threads may share to digest chunks: a `ChunkDigester`, or one that reads from afar."""

    is_stopped: bool
    asks_ahead: bool
    is_remote: bool

    @property
    def is_concurrent(self) -> bool:
        """Whether threads work side by side in it, for it holds the interpreter's lock briefly."""

    def __call__(self, chunk: Chunk, /) -> DigestedChunk:
        """Return what became of *chunk*."""


def suitable_workers(digester: ChunkDigester) -> int:
    """Return how many chunks should be read at a time at most."""
    if digester.is_remote:
        return _NUM_REMOTE_WORKERS
    return _NUM_WORKERS if digester.is_concurrent else _NUM_LOCKED_WORKERS


class _Pace:
    """Whether chunks are at hand, or have to be waited for; threads tell what theirs took."""

    def __init__(self, num_workers: int, *, is_remote: bool = False) -> None:
        self.is_waiting = is_remote
        self._is_remote = is_remote
        self._patience = num_workers * _PATIENCE
        self._num_at_hand = 0

    def note(self, wall_s: float, cpu_s: float, num_disk_reads: int) -> None:
        """Take in what a chunk took: seconds of its thread, and reads of the disk it waited for."""
        if num_disk_reads or wall_s > max(_WAITS * cpu_s, cpu_s + _WAITING_S):
            self.is_waiting = True
        self._num_at_hand = 0 if num_disk_reads else self._num_at_hand + 1
        if self._num_at_hand > self._patience:
            self.is_waiting = self._is_remote
            self._num_at_hand = 0

    def measured(self, digester: Digester, chunk: Chunk) -> DigestedChunk:
        """Return what becomes of *chunk*, and take in what that took."""
        wall, cpu, reads = time.perf_counter(), time.thread_time(), _num_disk_reads()
        done = digester(chunk)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        self.note(wall, cpu, _num_disk_reads() - reads)
        return done


def digest_in_threads(
    digester: Digester, chunks: Iterator[Chunk], num_workers: int
) -> Iterator[DigestedChunk]:
    """Yield what became of each of *chunks*, in order; threads read and digest.

    Args:
        digester: Shared by all threads.
        chunks: What there is to do, taken a bounded number ahead.
        num_workers: The most chunks that are read at the same time.
    """
    under_way: deque[Future[DigestedChunk]] = deque()
    pace = _Pace(num_workers, is_remote=digester.is_remote)
    num_few = min(num_workers, machine.num_threads())
    with (  # a pool starts its threads when they are needed
        ThreadPoolExecutor(num_few, thread_name_prefix="hash") as few,
        ThreadPoolExecutor(num_workers, thread_name_prefix="hash") as many,
    ):
        try:
            for chunk in chunks:
                digester.asks_ahead = pace.is_waiting
                waits = pace.is_waiting or chunk.archive is not None
                if not digester.is_concurrent and not waits:
                    while under_way:
                        yield under_way.popleft().result()
                    yield pace.measured(digester, chunk)
                    continue
                pool, num_threads = (many, num_workers) if waits else (few, num_few)
                under_way.append(pool.submit(pace.measured, digester, chunk))
                while len(under_way) >= num_threads * _CHUNKS_PER_WORKER:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            digester.is_stopped = True
            few.shutdown(cancel_futures=True)
            many.shutdown(cancel_futures=True)


def _num_disk_reads() -> int:
    """Return how often this thread had to read from a disk so far; 0 where that is not told."""
    who = getattr(resource, "RUSAGE_THREAD", None)  # Linux
    return resource.getrusage(who).ru_inblock if who is not None else 0
