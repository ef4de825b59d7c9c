"""Messages of a run for the user."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitReport
    from vit21k.training.forecast import Forecast


class Reporter:
    """Reports nothing: for tests, and for all processes except the first.

    `vit21k train` has one that prints.  All messages except warnings of log sinks come from the
    thread that trains.
    """

    def note(self, text: str) -> None:
        """Report a fact."""

    def warn(self, text: str) -> None:
        """Report a possible problem."""

    def forecast(self, forecast: "Forecast") -> None:
        """Report the expected time of the run."""

    def initialised(self, report: "InitReport") -> None:
        """Report the source of the first weights."""

    def line(self, line: Mapping[str, Any]) -> None:
        """Report a line of ``metrics.jsonl``, with ``total_steps`` and ``eta_seconds``."""

    def micro_step(self, step: int, num_done: int, num_images: int) -> None:
        """Report a micro-batch, as a step can take hours on a CPU.

        Args:
            step: Updates made before this one.
            num_done: Images of this update so far.
            num_images: Images of this update.
        """
