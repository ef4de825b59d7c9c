"""When the loss is no number any more: which pictures it was computed from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vit21k.atomic import write_atomic
from vit21k.data.loader import Batch
from vit21k.errors import NonFiniteLossError

_NUM_NAMED = 3

LossOf = Callable[[nn.Module, Batch], Tensor]


@dataclass
class LossWatch:
    """Stands before the loss and remembers the micro-batches of the step that is being made.

    It keeps their losses on their device and looks at none of them, so that no step waits for it.

    Attributes:
        path_of: Path of a picture, by row of the manifest.
        run_dir: Where the list of pictures is written.
        rank: Number of this process; each lists its own pictures.
    """

    path_of: Callable[[int], str]
    run_dir: Path
    rank: int = 0
    _step: int = field(default=0, init=False)
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    def start_step(self, step: int) -> None:
        """Forget the micro-batches of the step before; *step* updates are made."""
        self._step = step
        self._seen.clear()

    def watch(self, loss_of: LossOf) -> LossOf:
        """Return *loss_of*, whose results are noted."""

        def watched(model: nn.Module, batch: Batch) -> Tensor:
            loss = loss_of(model, batch)
            self._seen.append((batch.rows_B, loss.detach()))
            return loss

        return watched

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Add to a `NonFiniteLossError` of the block which pictures were in the step."""
        try:
            yield
        except NonFiniteLossError as error:
            raise self._explained(error) from error

    def _explained(self, error: NonFiniteLossError) -> NonFiniteLossError:
        bad = [rows_B for rows_B, loss in self._seen if not bool(torch.isfinite(loss).all())]
        paths = [self.path_of(int(row)) for rows_B in bad for row in rows_B]
        if not paths:
            return error
        path = self.run_dir / f"non-finite-step-{self._step + 1}-rank-{self.rank}.txt"
        write_atomic(path, "".join(f"{name}\n" for name in paths).encode())
        named = ", ".join(f"`{name}`" for name in paths[:_NUM_NAMED])
        more = f" and {len(paths) - _NUM_NAMED:,} more" if len(paths) > _NUM_NAMED else ""
        return NonFiniteLossError(
            f"{error.message}\n{len(bad)} of this process's {len(self._seen)} micro-batches had "
            f"such a loss; their {len(paths):,} pictures are listed in `{path}`: {named}{more}",
            hint=f"{error.hint}; look at grad_norm in `{self.run_dir / 'metrics.jsonl'}` and at "
            "the pictures" + (_ALL_HINT if len(bad) == len(self._seen) > 1 else ""),
        )


_ALL_HINT = " (all micro-batches are concerned: rather the weights than a picture)"
