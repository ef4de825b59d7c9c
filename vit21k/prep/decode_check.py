"""Decode all images; list failures in undecodable.parquet."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data.dataset import ImageDataset, LocatorColumns, announced_rows, folder_with_indices
from vit21k.data.decode import MESSAGES
from vit21k.errors import ImageError
from vit21k.lock import locked
from vit21k.manifest.io import Manifest, ManifestHeader, open_manifest
from vit21k.manifest.problems import Problem, ProblemKind, num_known
from vit21k.manifest.schema import DIGESTS, LOCATOR_COLUMNS, UNDECODABLE
from vit21k.manifest.writer import manifest_writer, refuse_inside
from vit21k.prep.decode_worker import SIZE_BYTES
from vit21k.prep.dedup import FileKeys, find_copies
from vit21k.prep.hash_chunks import problem_rows
from vit21k.sources.read import Root, existing_root, read_again, refuse_gone, why_unread

SECONDS = 30.0
MEMORY_BYTES = 3 << 30
"""Far above the budget of `open_image`, which decides: only a misbehaving decoder reaches it."""

_KINDS = {str(kind): kind for kind in ProblemKind}
_MAX_WAITING = 6  # as long as it may compute
_LEAST_WAITING = 0.01
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_AHEAD = 8  # images a worker


class Verdict(NamedTuple):
    """Result of decoding an image; *kind* is None if it was decoded."""

    row: int
    kind: ProblemKind | None
    detail: str


def why_not_read(verdict: Verdict) -> str | None:
    """Return why an image could not be read; None if it was read, decoded or not."""
    is_unread = verdict.kind in (ProblemKind.VANISHED, ProblemKind.UNREADABLE)
    return verdict.detail if is_unread else None


def check_images(
    read: Callable[[int], bytes],
    rows: Iterable[int],
    *,
    num_workers: int,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Verdict]:
    """Decode the images of *rows*; yield a verdict on each, in order.

    Args:
        read: Gives the content of an image; called from several threads.
        rows: Which.
        num_workers: Processes that decode.
        seconds: CPU time limit of an image.
        memory_bytes: Memory that one image may take.
    """
    workers = _Workers(read, seconds, memory_bytes)
    waiting: deque[Future[Verdict]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        try:
            for row in rows:
                waiting.append(pool.submit(workers.check, row))
                if len(waiting) >= num_workers * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            workers.close()


class _Workers:
    """A process for each thread that asks for one."""

    def __init__(self, read: Callable[[int], bytes], seconds: float, memory_bytes: int) -> None:
        self._read = read
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._of_thread: dict[int, _Worker] = {}

    def check(self, row: int) -> Verdict:
        """Read and decode an image."""
        try:
            content = read_again(self._read, row)
        except ImageError as error:
            return Verdict(row, ProblemKind.VANISHED, error.message)
        except OSError as error:
            return Verdict(row, ProblemKind.UNREADABLE, why_unread(error))
        me = threading.get_ident()
        worker = self._of_thread.get(me)
        if worker is None:
            worker = self._of_thread[me] = _Worker(self._memory_bytes)
        kind, detail = worker.ask(content, self._seconds)
        if worker.is_dead:
            del self._of_thread[me]
        return Verdict(row, kind, detail)

    def close(self) -> None:
        """End all processes."""
        for worker in self._of_thread.values():
            worker.end()


class _Worker:
    """One process, started when it is made."""

    def __init__(self, memory_bytes: int) -> None:
        # The process is this Python, running a module of this package.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "vit21k.prep.decode_worker", str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None  # noqa: S101 (for the type checker)
        self._answers = self._process.stdout
        self._has_answered = select.poll()  # `select` takes no descriptor above 1,023
        self._has_answered.register(self._answers, select.POLLIN)
        self.is_dead = False
        self._is_warm = False

    def ask(self, content: bytes, seconds: float) -> tuple[ProblemKind | None, str]:
        """Return the verdict on an image; after one on its behaviour the process is dead."""
        if not self._is_warm:  # the time to start is nobody's fault
            self._is_warm = True
            self._put(b"")
            self._get(None)
        if not self._put(content):
            return self._died()
        answer = self._get_within(seconds)
        if answer is None:
            self.end()
            return ProblemKind.TOO_SLOW_TO_DECODE, f"more than {seconds:g} s"
        if not answer:
            return self._died()
        verdict, messages = json.loads(answer)
        MESSAGES.update(messages)
        return (_KINDS[verdict[0]], verdict[1]) if verdict else (None, "")

    def _put(self, content: bytes) -> bool:
        """Send an image; return whether the process is alive."""
        assert self._process.stdin is not None  # noqa: S101 (for the type checker)
        try:
            self._process.stdin.write(len(content).to_bytes(SIZE_BYTES, "little") + content)
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _get_within(self, seconds: float) -> bytes | None:
        """Return the answer; None once *seconds* of computing, or of much waiting, are over.

        Computing counts, so that a machine that is busy with other things changes no verdict.
        """
        started, used_before = time.monotonic(), self._seconds_computed()
        left = seconds
        while left > 0 and time.monotonic() - started < _MAX_WAITING * seconds:
            answer = self._get(max(left, _LEAST_WAITING))
            if answer is not None:
                return answer
            left = seconds - (self._seconds_computed() - used_before)
        return None

    def _seconds_computed(self) -> float:
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8")
        except OSError:  # it has died: its answer is empty
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICKS_PER_SECOND

    def _get(self, seconds: float | None) -> bytes | None:
        """Return the answer; nothing if the process has died, None if the time is over."""
        ready = self._has_answered.poll(None if seconds is None else 1_000 * seconds)
        return self._answers.readline() if ready else None

    def _died(self) -> tuple[ProblemKind, str]:
        self.end()
        return ProblemKind.DECODER_DIED, f"exit code {self._process.returncode}"

    def end(self) -> None:
        """Kill the process, and wait for its end."""
        self.is_dead = True
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.communicate()


@dataclass
class DecodeSummary:
    """Counts of a run of `find_undecodable`.

    Attributes:
        num_images: Distinct contents.
        num_decoded: Those that were decoded to the last pixel.
        problems: The others, by kind.
        num_known_problems: Of them, files that are known to be unreadable in fall11.
    """

    num_images: int = 0
    num_decoded: int = 0
    problems: Counter[ProblemKind] = field(default_factory=Counter)
    num_known_problems: int = 0


def find_undecodable(
    manifests: Path,
    *,
    root: Root | None = None,
    num_workers: int,
    on_verdict: Callable[[Verdict], None] = lambda _verdict: None,
) -> DecodeSummary:
    """Decode every image in full, and write `undecodable.parquet`.

    Args:
        manifests: The folder that holds `digests.parquet`.
        root: Where the image tree is now; default: where it was hashed.
        num_workers: Processes that decode.
        on_verdict: Called with each verdict, in digests order.

    Raises:
        ManifestError: `digests.parquet` is missing or damaged.
        ImageTreeError: The image tree is not there, or was gone during the run, or is compressed.
        UsageError: *manifests* is inside it.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="verify"):
        digests = open_manifest(manifests, DIGESTS)
        refuse_inside(manifests, digests.header.image_folder)
        images, rows = _distinct(digests, existing_root(digests.header.root, root))
        summary = DecodeSummary(num_images=len(rows))
        header = ManifestHeader(
            algorithm=digests.header.algorithm,
            root=digests.header.root,
            inputs={"digests": digests.fingerprint},
        )
        ahead = announced_rows(images, rows.tolist())
        verdicts = check_images(images.read_bytes, ahead, num_workers=num_workers)
        with manifest_writer(UNDECODABLE, manifests, header) as writer:
            for verdict in refuse_gone(verdicts, why_not_read, images.root):
                if verdict.kind is None:
                    summary.num_decoded += 1
                else:
                    summary.problems[verdict.kind] += 1
                    problem = Problem(images.path(verdict.row), verdict.kind, verdict.detail)
                    summary.num_known_problems += num_known([problem.path])
                    writer.write(problem_rows([problem]))
                on_verdict(verdict)
    return summary


def _distinct(digests: Manifest, root: Root) -> tuple[ImageDataset, NDArray[np.int64]]:
    """Return the files of *digests*, and the rows that are the first of their content."""
    groups = find_copies(FileKeys(digests), digests.num_rows)
    is_copy = np.zeros(digests.num_rows, dtype=bool)
    is_copy[groups.rows_M] = True
    is_copy[groups.rows_M[groups.starts_G]] = False
    rows = digests.read(LOCATOR_COLUMNS)
    no_labels = pa.LargeListArray.from_arrays(
        pa.array(np.zeros(rows.num_rows + 1, dtype=np.int64)), pa.array([], pa.int64())
    )
    paths = rows["path"].cast(pa.large_string()).combine_chunks()
    paths = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
    images = ImageDataset.from_arrow(
        root, paths, no_labels, LocatorColumns.from_rows(rows), folder_with_indices(digests)
    )
    return images, np.flatnonzero(~is_copy)
