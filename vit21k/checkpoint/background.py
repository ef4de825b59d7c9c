"""Writing that does not hold up the caller: one thing at a time, in order, no error lost."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self


class BackgroundWriter:
    """A thread that writes.

    Whoever has something to write waits until what was written before is on disk (`wait`), copies
    what must not change meanwhile, and submits it: at most one copy is ever held.  What went wrong
    is raised by the next call of any method, and when the block ends.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Also on the way out of an error what is being written is finished.
        self._pool.shutdown(wait=True)
        if error is None:
            self.wait()

    def submit(self, write: Callable[[], object]) -> None:
        """Begin *write*, once what was submitted before is done."""
        self.wait()
        self._pending = self._pool.submit(write)

    def check(self) -> None:
        """Raise what went wrong, if something did; does not wait."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: The disk is full or failing.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
