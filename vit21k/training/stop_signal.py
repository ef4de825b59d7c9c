"""SIGTERM and Ctrl-C ask a run to stop at the next point where its state is whole."""

import signal
from types import FrameType, TracebackType
from typing import Self


class StopSignal:
    """While it is entered, the first signal is noted instead of ending the process.

    A second one does what it did before.

    Attributes:
        received: The signal that came, if one did.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous = {signum: signal.getsignal(signum) for signum in self._SIGNALS}

    def __enter__(self) -> Self:
        for signum in self._SIGNALS:
            signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(signum)
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
