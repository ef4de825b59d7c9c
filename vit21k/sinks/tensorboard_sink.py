"""A run's lines as TensorBoard event files: ``<run>/tensorboard/``."""

from collections.abc import Mapping

from vit21k.errors import MissingExtraError
from vit21k.sinks.sink import LoggedRun, plain_name

FOLDER = "tensorboard"


class TensorBoardSink:
    """Writes event files, a new one for every process of the run.

    Points of later steps than the checkpoint a run goes on from are purged, as TensorBoard does it:
    by a mark in the new file.
    """

    def __init__(self, run: LoggedRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoard is not installed", hint="pip install 'vit21k[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(run.run_dir / FOLDER, purge_step=run.resumed_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point for each value."""
        for name, value in values.items():
            self._writer.add_scalar(plain_name(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


open_sink = TensorBoardSink
