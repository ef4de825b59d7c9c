"""What learns: the model, and all that changes with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from vit21k.optim.ema import Ema
from vit21k.optim.loss_scaler import LossScaler, loss_scaler_of
from vit21k.optim.optimizers import build_optimizers
from vit21k.training.optim_parts import optim_plan_of
from vit21k.training.setup import Setup


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The state of a run beside its progress.

    Attributes:
        model: On its device, in train mode; spread over the processes if the recipe says so.
        optimizers: Of its parameters.
        ema: The average of its parameters, if the recipe wants one.
        scaler: Of its loss.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    ema: Ema | None
    scaler: LossScaler

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only."""
        return any(hasattr(param, "full_tensor") for param in self.model.parameters())


def learner_of(setup: Setup, model: nn.Module) -> Learner:
    """Return what learns in the run of *setup*, from the first weights of *model*, or resumed ones.

    Args:
        setup: The run.
        model: With the same weights in every process; moved to the device.
    """
    recipe = setup.recipe
    model = model.to(setup.device).train()
    if recipe.parallel.kind == "fsdp" and setup.world.world_size > 1:
        from vit21k.training.sharding import shard  # noqa: PLC0415 (takes a second to import)

        shard(model, setup.world, device=setup.device, precision=recipe.products_in)
    ema = None
    if recipe.ema.decay is not None:
        ema = Ema(model, decay=recipe.ema.decay, warmup_steps=recipe.ema.warmup_steps)
    return Learner(
        model=model,
        optimizers=build_optimizers(model, optim_plan_of(recipe)),
        ema=ema,
        scaler=loss_scaler_of(recipe.products_in),
    )
