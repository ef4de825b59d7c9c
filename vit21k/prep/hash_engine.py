"""Where chunks are digested: in threads of this process, or wherever another engine does it."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from vit21k.prep.digest import ChunkDigester, DigestedChunk
from vit21k.prep.walk import Chunk

_CHUNKS_PER_WORKER = 4

Engine = Callable[[ChunkDigester, Iterator[Chunk], int], Iterator[DigestedChunk]]
"""Yields what became of each chunk, in order: of (digester, chunks, number of workers)."""


class Digester(Protocol):
    """What threads may share to digest chunks: a `ChunkDigester`, or one that reads from afar."""

    is_stopped: bool

    def __call__(self, chunk: Chunk, /) -> DigestedChunk:
        """Return what became of *chunk*."""


def digest_in_threads(
    digester: Digester, chunks: Iterator[Chunk], num_workers: int
) -> Iterator[DigestedChunk]:
    """Yield what became of each of *chunks*, in order; threads read and digest."""
    under_way: deque[Future[DigestedChunk]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="hash") as pool:
        try:
            for chunk in chunks:
                under_way.append(pool.submit(digester, chunk))
                if len(under_way) >= num_workers * _CHUNKS_PER_WORKER:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            digester.is_stopped = True
            pool.shutdown(cancel_futures=True)
