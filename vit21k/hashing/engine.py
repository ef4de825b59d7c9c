"""Where chunks are digested: by this thread and a pool of others, or wherever another engine does.

Performance: what lies in the page cache is digested fastest by a single thread.  More of them would
hand the interpreter's lock to and fro for every file, which doubles the CPU time and the wall time
(20,000 files of 115 kB: 0.5 s, or 1.1 s with 16 threads).  What lies on a disk is waited for by
many threads, which ask for all files of a chunk before they read the first one.  Which of the two
it is shows while it is done, so `_Pace` starts with one thread and changes when it should.
"""

import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.walk import Chunk

_CHUNKS_PER_WORKER = 4
_WAITS = 3.0
"""Wall time of a chunk over its CPU time from which on its files were waited for."""
_PATIENCE = 16
"""Chunks for each worker without a read of the disk, after which one thread tries again."""

Engine = Callable[[ChunkDigester, Iterator[Chunk], int], Iterator[DigestedChunk]]
"""Yields what became of each chunk, in order: of (digester, chunks, number of workers)."""


class Digester(Protocol):
    """What threads may share to digest chunks: a `ChunkDigester`, or one that reads from afar."""

    is_stopped: bool
    asks_ahead: bool

    def __call__(self, chunk: Chunk, /) -> DigestedChunk:
        """Return what became of *chunk*."""


class _Effort(NamedTuple):
    """What a chunk took: the seconds of the thread, and the reads of the disk it waited for."""

    wall_s: float
    cpu_s: float
    num_disk_reads: int


class _Pace:
    """Whether chunks are at hand, for one thread, or have to be waited for by many."""

    def __init__(self, num_workers: int) -> None:
        self.is_waiting = False
        self._patience = num_workers * _PATIENCE
        self._num_at_hand = 0

    def note(self, effort: _Effort) -> None:
        if effort.num_disk_reads or effort.wall_s > _WAITS * effort.cpu_s:
            self.is_waiting = True
        self._num_at_hand = 0 if effort.num_disk_reads else self._num_at_hand + 1
        if self._num_at_hand > self._patience:
            self.is_waiting = False
            self._num_at_hand = 0


def digest_in_threads(
    digester: Digester, chunks: Iterator[Chunk], num_workers: int
) -> Iterator[DigestedChunk]:
    """Yield what became of each of *chunks*, in order; threads read and digest.

    Args:
        digester: Shared by all threads.
        chunks: What there is to do, taken a bounded number ahead.
        num_workers: The most chunks that are read at the same time.
    """
    under_way: deque[Future[tuple[DigestedChunk, _Effort]]] = deque()
    pace = _Pace(num_workers)

    def next_done() -> DigestedChunk:
        done, effort = under_way.popleft().result()
        pace.note(effort)
        return done

    with ThreadPoolExecutor(num_workers, thread_name_prefix="hash") as pool:
        try:
            for chunk in chunks:
                digester.asks_ahead = pace.is_waiting
                if pace.is_waiting or chunk.archive is not None:
                    under_way.append(pool.submit(_measured, digester, chunk))
                    if len(under_way) >= num_workers * _CHUNKS_PER_WORKER:
                        yield next_done()
                    continue
                while under_way:
                    yield next_done()
                done, effort = _measured(digester, chunk)
                pace.note(effort)
                yield done
            while under_way:
                yield next_done()
        finally:
            digester.is_stopped = True
            pool.shutdown(cancel_futures=True)


def _measured(digester: Digester, chunk: Chunk) -> tuple[DigestedChunk, _Effort]:
    wall, cpu, reads = time.perf_counter(), time.thread_time(), _num_disk_reads()
    done = digester(chunk)
    return done, _Effort(
        time.perf_counter() - wall, time.thread_time() - cpu, _num_disk_reads() - reads
    )


def _num_disk_reads() -> int:
    """Return how often this thread had to read from a disk so far; 0 where that is not told."""
    who = getattr(resource, "RUSAGE_THREAD", None)  # Linux
    return resource.getrusage(who).ru_inblock if who is not None else 0
