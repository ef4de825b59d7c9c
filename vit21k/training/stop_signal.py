"""What asks a run to stop at the next point where its state is whole: a signal, an error of data.

SIGTERM: Kubernetes, Slurm's preemption, torchrun to its processes.  SIGUSR1: Slurm some minutes
before the time limit (``--signal=USR1@...``).  SIGINT: Ctrl-C.
"""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Self

from vit21k.data.loader import Batch
from vit21k.errors import Vit21kError

# torchrun passes on what it gets, so that its processes hear of one request twice.
_SAME_REQUEST_SECONDS = 3.0


class StopSignal:
    """While it is entered, a signal is noted instead of ending the process.

    Only a second Ctrl-C, some seconds after the first signal, does what it did before: whoever
    sends SIGTERM again has SIGKILL.

    Attributes:
        received: The signal that came first, if one did.
        error: What went wrong with the data of this process; it is raised once the state is saved.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.error: Vit21kError | OSError | None = None
        self._received_at = 0.0
        self._previous = {signum: signal.getsignal(signum) for signum in self._SIGNALS}

    @property
    def is_asked(self) -> bool:
        """Whether there is a reason to stop."""
        return self.received is not None or self.error is not None

    def guarded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield *batches* until one cannot be had; what is wrong with it is noted."""
        try:
            yield from batches
        except (Vit21kError, OSError) as error:
            self.error = self.error or error

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
