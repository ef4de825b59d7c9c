"""Signals that ask a run to stop at the next point where its state is whole.

SIGTERM: Kubernetes, Slurm's preemption, torchrun to its processes.  SIGUSR1: Slurm some minutes
before the time limit (``--signal=USR1@...``).  SIGINT: Ctrl-C.
"""

import signal
import time
from types import FrameType, TracebackType
from typing import Self

# torchrun passes on what it gets, so that its processes hear of one request twice.
_SAME_REQUEST_SECONDS = 3.0


class StopSignal:
    """While it is entered, a signal is noted instead of ending the process.

    Only a second Ctrl-C, some seconds after the first signal, does what it did before: whoever
    sends SIGTERM again has SIGKILL.

    Attributes:
        received: The signal that came first, if one did.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
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
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(signum), now
        elif signum == signal.SIGINT and now - self._received_at > _SAME_REQUEST_SECONDS:
            signal.signal(signum, self._previous[signal.SIGINT])
            signal.raise_signal(signum)
