"""Pictures -> which of them cannot be decoded, and why: from a closed list.

Each is decoded in full by the function that training uses, in a process of its own kind (see
`decode_worker`) with a limit on time and one on memory.  The verdicts do not depend on the number
of processes.
"""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vit21k.data.decode import MESSAGES
from vit21k.data.unread import read_again, why_unread
from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind
from vit21k.prep.decode_worker import SIZE_BYTES

SECONDS = 30.0
MEMORY_BYTES = 3 << 30
"""Far above the budget of `open_image`, which decides: only a decoder that misbehaves gets here."""

_KINDS = {str(kind): kind for kind in ProblemKind}
_MAX_WAITING = 6  # as long as it may compute
_LEAST_WAITING = 0.01
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_AHEAD = 8  # pictures a worker


class Verdict(NamedTuple):
    """What became of a picture; *kind* is None if it was decoded."""

    row: int
    kind: ProblemKind | None
    detail: str


def why_not_read(verdict: Verdict) -> str | None:
    """Return why a picture could not be read; None if it was, whatever became of it then."""
    is_unread = verdict.kind in (ProblemKind.VANISHED, ProblemKind.UNREADABLE)
    return verdict.detail if is_unread else None


def check_pictures(
    read: Callable[[int], bytes],
    rows: Iterable[int],
    *,
    num_workers: int,
    seconds: float = SECONDS,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[Verdict]:
    """Decode the pictures of *rows*; yield a verdict on each, in order.

    Args:
        read: Gives the content of a picture; called from several threads.
        rows: Which.
        num_workers: Processes that decode.
        seconds: Computing time that one picture may take; on a busy machine it may wait longer.
        memory_bytes: Memory that one picture may take.
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
        """Read and decode a picture."""
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
        """Return the verdict on a picture; after one on its behaviour the process is dead."""
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
        """Send a picture; return whether there was somebody to take it."""
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
