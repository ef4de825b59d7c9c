"""One loader for each image size of a run, opened when its steps come."""

from collections.abc import Callable, Iterator, Sequence

from vit21k.data.loader import Batch, TrainLoader


class StagedLoader:
    """The micro-batches of each step, from the loader of its stage.

    Args:
        stages: First step and image size of each part of the run, the first step of all being 0.
        open_loader: Returns a loader of images of a size.
    """

    def __init__(
        self, stages: Sequence[tuple[int, int]], open_loader: Callable[[int], TrainLoader]
    ) -> None:
        self._stages = stages
        self._open_loader = open_loader
        self._img_size = 0
        self._loader: TrainLoader | None = None
        self._num_skipped = 0
        self._skipped: dict[str, str] = {}

    @property
    def num_skipped(self) -> int:
        """How often a bad picture was left out so far."""
        return self._num_skipped + (self._loader.num_skipped if self._loader else 0)

    @property
    def skipped(self) -> dict[str, str]:
        """Why each picture was left out, by path."""
        return {**self._skipped, **(self._loader.skipped if self._loader else {})}

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the images of the 0-based *step*; see `TrainLoader.micro_batches`."""
        yield from self._loader_of(step).micro_batches(step)

    def close(self) -> None:
        """Join the threads."""
        if self._loader is not None:
            self._num_skipped += self._loader.num_skipped
            self._skipped.update(self._loader.skipped)
            self._loader.close()
            self._loader = None

    def _loader_of(self, step: int) -> TrainLoader:
        img_size = next(size for first, size in reversed(self._stages) if step >= first)
        if self._loader is None or img_size != self._img_size:
            self.close()
            self._img_size, self._loader = img_size, self._open_loader(img_size)
        return self._loader
