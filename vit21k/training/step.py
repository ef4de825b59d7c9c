"""Options that speed up a step: compiled blocks, attention, float8; some are chosen by trial."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.data.loader import Batch
from vit21k.device import DTYPES, device_name
from vit21k.distributed import World
from vit21k.errors import MissingExtraError, UsageError
from vit21k.models.attention import (
    AttentionName,
    AttentionShape,
    Trial,
    fastest,
    try_backends,
    use_backend,
)
from vit21k.models.layers import Attention, Block
from vit21k.recipe.schema import StepSection
from vit21k.training.context import RunContext
from vit21k.training.forecast import TrialCache, dummy_batch, step_seconds

_FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
_MULTIPLE = 16  # of both sides of a matrix, for the hardware


def use_float8_mlps(model: nn.Module, device: torch.device, *, emulate: bool = False) -> int:
    """Replace the linear layers of the MLPs by float8 ones; names and weights stay.

    Args:
        model: Changed in place.
        device: Of the model.
        emulate: Compute in float32 what float8 would give, on any device: for tests.

    Returns:
        The number of layers that were replaced.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: torchao is not installed.
    """
    if not emulate:
        _require_float8(device)
    try:
        from torchao.float8 import (  # noqa: PLC0415 (optional)
            Float8LinearConfig,
            convert_to_float8_training,
        )
    except ImportError as error:
        raise MissingExtraError(
            "step.float8 needs torchao, which is not installed",
            hint="install it with: pip install 'vit21k[float8]'",
        ) from error
    config = Float8LinearConfig(emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=_is_in_mlp, config=config)
    return sum(type(module).__name__ == "Float8Linear" for module in model.modules())


def _is_in_mlp(module: nn.Module, name: str) -> bool:
    """Return whether the layer *name* is one of an MLP, and of a size that float8 supports."""
    if not isinstance(module, nn.Linear) or ".mlp." not in f".{name}":
        return False
    return module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0


def _require_float8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY:
        return
    raise UsageError(
        f"step.float8 is `mlp`, and {device_name(device)} has no 8-bit matrix products",
        hint="NVIDIA GPUs have them since Ada and Hopper; `--set step.float8=none`",
    )


TRIALS_FILE = "trials.json"
# With fewer operations, attention of a micro-batch takes too little time for a trial.
_FLOPS_WORTH_A_TRIAL = 2e9
_CPU_TRIAL_IMAGES = 4
# Of one block.  torch stops compiling after 8, with only a warning.
_MAX_GRAPHS = 64
_WORTHWHILE = 0.97  # of the time of a step without compilation

LossOf = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The input of one forward and backward pass.

    Attributes:
        img_size: Side of an image, in pixels.
        device_batch_size: Images of one forward pass.
        dtype: Of matrix products.
    """

    img_size: int
    device_batch_size: int
    dtype: torch.dtype = torch.float32


def prepare_step(
    model: nn.Module,
    section: StepSection,
    shape: StepShape,
    *,
    loss_of: LossOf,
    device: torch.device,
    run_dir: Path | None = None,
    world: World | None = None,
) -> list[str]:
    """Apply *section* to *model*, and return a line on each choice.

    Args:
        model: On *device*, in train mode; changed in place, except names and weights.
        section: The options.
        shape: Of the input.
        loss_of: Mean loss of a micro-batch, for the trial of compiled blocks.
        device: Of the model.
        run_dir: Stores results of trials; None: they are not stored.
        world: The processes, which all make the same choice.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: float8 is wanted and torchao is not installed.
    """
    world = world or World()
    facts = {**section.model_dump(), **asdict(shape), "dtype": str(shape.dtype)}
    cache = TrialCache(None if run_dir is None else run_dir / TRIALS_FILE, facts, device)
    notes = []
    if section.float8 == "mlp":
        notes.append(f"float8: {use_float8_mlps(model, device)} linear layers of MLPs")
    if section.attention != "auto":
        use_backend(model, section.attention)
    elif (attention := _attention_shape(model, shape, device)) is not None:
        name = cache.get("attention") or _try_attention(model, attention, shape, cache, world)
        use_backend(model, name)
        notes.append(f"attention: {name} ({cache.shown('attention')})")
    choice: str = section.compile
    if choice == "auto" and device.type == "cuda":
        choice = cache.get("compile") or _try_compile(model, shape, loss_of, cache, world)
        notes.append(f"compile: {choice} ({cache.shown('compile')})")
    if choice == "blocks":
        compile_blocks(model)
    if world.rank == 0:
        cache.save()
    return notes


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """Yield the transformer blocks of *model*, first to last."""
    return (module for module in model.modules() if isinstance(module, Block))


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Apply torch.compile to every block; it compiles at the first call.

    Equal blocks share the compiled code.  The last one, which may compute fewer tokens, has its
    own, and so has every image size, in training and in evaluation.
    """
    limits: Any = torch._dynamo.config  # noqa: SLF001 (its public name)
    limits.recompile_limit = max(limits.recompile_limit, _MAX_GRAPHS)
    for block in blocks_of(model):
        block.compile(dynamic=False, backend=backend)


def _attention_shape(
    model: nn.Module, shape: StepShape, device: torch.device
) -> AttentionShape | None:
    """Return the input of attention in the first block; None if it is too small for a trial."""
    attention = next((m for m in model.modules() if isinstance(m, Attention)), None)
    grid = getattr(model, "grid_size", None)
    if attention is None or grid is None:
        return None
    num_tokens = grid[0] * grid[1] + int(getattr(model, "num_prefix_tokens", 0))
    width = attention.qkv.in_features
    if 4 * shape.device_batch_size * num_tokens**2 * width < _FLOPS_WORTH_A_TRIAL:
        return None
    num_images = shape.device_batch_size
    if device.type == "cpu":
        num_images = min(num_images, _CPU_TRIAL_IMAGES)
    return AttentionShape(num_images, attention.num_heads, num_tokens, width // attention.num_heads)


def _try_attention(
    model: nn.Module, attention: AttentionShape, shape: StepShape, cache: TrialCache, world: World
) -> AttentionName:
    """Return the fastest implementation, over all processes."""
    device = next(model.parameters()).device
    dropout = next(m.attn_drop_rate for m in model.modules() if isinstance(m, Attention))
    trials = try_backends(attention, device=device, dtype=shape.dtype, dropout=dropout)
    times = torch.tensor([min(trial.seconds, 1e9) for trial in trials], dtype=torch.float64)
    summed = world.all_reduce_sum(times).tolist()
    trials = [trial._replace(seconds=total) for trial, total in zip(trials, summed, strict=True)]
    name = fastest(trials)
    cache.set("attention", name, {trial.name: _shown(trial, world) for trial in trials})
    return name


def _shown(trial: Trial, world: World) -> str:
    return trial.problem or f"{1e3 * trial.seconds / world.world_size:.2f} ms"


def _try_compile(
    model: nn.Module, shape: StepShape, loss_of: LossOf, cache: TrialCache, world: World
) -> str:
    """Return whether compiled blocks are faster, over all processes: "blocks" or "none"."""
    batch = dummy_batch(shape.device_batch_size, shape.img_size)
    compile_blocks(model)
    compiled = step_seconds(model, loss_of, batch)
    for block in blocks_of(model):
        block._compiled_call_impl = None  # noqa: SLF001 (torch has no public way to undo it)
    eager = step_seconds(model, loss_of, batch)
    times = world.all_reduce_sum(torch.tensor([eager, compiled], dtype=torch.float64)).tolist()
    choice = "blocks" if times[1] < _WORTHWHILE * times[0] else "none"
    shown = {"none": f"{1e3 * eager:.1f} ms", "blocks": f"{1e3 * compiled:.1f} ms"}
    cache.set("compile", choice, shown)
    return choice


def prepare_model(run: RunContext, model: nn.Module, *, device_batch_size: int) -> nn.Module:
    """Return *model* on its device, in train mode, with the options of the recipe's step.

    Sharding comes after it.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: float8 is wanted and torchao is not installed.
    """
    recipe = run.recipe
    model = model.to(run.device).train()
    notes = prepare_step(
        model,
        recipe.step,
        StepShape(
            img_size=recipe.model.img_size,
            device_batch_size=device_batch_size,
            dtype=DTYPES[recipe.products_in],
        ),
        loss_of=run.objective.loss,
        device=run.device,
        run_dir=run.options.run_dir,
        world=run.world,
    )
    for note in notes:
        run.reporter.note(note)
    return model
