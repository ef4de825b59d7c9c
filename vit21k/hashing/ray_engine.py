"""The chunks of a tree, digested on a Ray cluster.

What runs there is what runs in threads elsewhere: `ChunkDigester` on a chunk.  Chunks are handed
out in path order and taken in path order, so the manifests are the same to the byte.  The chunks of
a worker that dies are digested again by another.

Every machine of the cluster needs vit21k, and must see the image root under the same path.
"""

import os
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any

from vit21k.errors import MissingExtraError, Vit21kError
from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.engine import Engine
from vit21k.hashing.walk import Chunk

_CHUNKS_PER_TASK = 16
"""About 2,000 files, 0.2 GB: long enough to make a task's millisecond of overhead small."""

_TASKS_PER_CPU = 3
_NUM_RETRIES = 5
_CONNECT_SECONDS = 10


def ray_engine(address: str | None = None) -> Engine:
    """Return what digests chunks on the cluster at *address*.

    Args:
        address: ``host:port``, or ``auto`` for the cluster this machine belongs to; default: the
            one that ``RAY_ADDRESS`` names, or else one of this machine's processors.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    _import_ray()

    def digest(
        digester: ChunkDigester, chunks: Iterator[Chunk], num_workers: int
    ) -> Iterator[DigestedChunk]:
        with ray_cluster(address) as ray:
            yield from _digest_on(ray, digester, chunks, num_workers)

    return digest


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected; a connection that was there before is left open.

    Raises:
        MissingExtraError: Ray is not installed.
        Vit21kError: There is no such cluster.
    """
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            _knock_at(address)  # Ray would try for minutes
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise Vit21kError(
                f"no Ray cluster at `{address or 'this machine'}`: {error}",
                hint="start one with `ray start --head`, or leave `--address` out",
            ) from error
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


def _knock_at(address: str | None) -> None:
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def num_cpus(ray: Any) -> int:
    """Return how many tasks the cluster runs at a time."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def _digest_on(
    ray: Any, digester: ChunkDigester, chunks: Iterator[Chunk], num_workers: int
) -> Iterator[DigestedChunk]:
    task = ray.remote(max_retries=_NUM_RETRIES)(_digest_chunks)
    shared = ray.put(digester)
    num_tasks = _TASKS_PER_CPU * num_cpus(ray)
    under_way: deque[Any] = deque()
    try:
        while group := list(islice(chunks, _CHUNKS_PER_TASK)):
            under_way.append(task.remote(shared, group, num_workers))
            if len(under_way) >= num_tasks:
                yield from ray.get(under_way.popleft())
        while under_way:
            yield from ray.get(under_way.popleft())
    finally:
        for left in under_way:
            ray.cancel(left)


def _digest_chunks(
    digester: ChunkDigester, chunks: list[Chunk], num_workers: int
) -> list[DigestedChunk]:
    """Return what became of each of *chunks*; on a worker of the cluster."""
    with ThreadPoolExecutor(min(num_workers, len(chunks))) as pool:
        return list(pool.map(digester, chunks))


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError(
            "Ray is not installed", hint="`pip install 'vit21k[ray]'`"
        ) from None
    return ray
