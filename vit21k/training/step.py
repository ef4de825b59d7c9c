"""What makes a step fast: compiled blocks, attention, float8, recomputation."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vit21k.data.loader import Batch
from vit21k.device import DTYPES, device_name, wait_for
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
from vit21k.models.vit import VisionTransformer
from vit21k.recipe.schema import StepSection
from vit21k.training.context import RunContext
from vit21k.training.forecast import TrialMemory, dummy_batch

_FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
_MULTIPLE = 16  # of both sides of a matrix, for the hardware


def use_float8_mlps(model: nn.Module, device: torch.device, *, emulate: bool = False) -> int:
    """Replace the linear layers of the MLPs by float8 ones; weights stay as they are.

    Args:
        model: Changed in place; names and weights are not.
        device: Where it computes.
        emulate: Compute in float32 what float8 would give, on any device: for tests.

    Returns:
        How many layers were replaced.

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
    """Return whether the layer *name* is one of an MLP, and of a size that float8 takes."""
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
# Below this many operations, attention of a micro-batch takes no time worth a trial.
_FLOPS_WORTH_A_TRIAL = 2e9
_CPU_TRIAL_IMAGES = 4
_NUM_ROUNDS = 5
# Of one block.  torch gives up at 8, silently but for a warning.
_MOST_GRAPHS = 64
_WORTHWHILE = 0.97  # of the time of the plain step

LossOf = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What one forward and backward pass computes on.

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
    """Make *model* compute as the recipe's *section* says, and return in words what was chosen.

    Args:
        model: On *device*, in train mode; changed in place, its names and weights are not.
        section: How.
        shape: On what.
        loss_of: Mean loss of a micro-batch, for the trial of compiled blocks.
        device: Where.
        run_dir: Remembers trials; None: nothing is remembered.
        world: The processes that train together; they all choose the same.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: float8 is asked for and torchao is not installed.
    """
    world = world or World()
    facts = {**section.model_dump(), **asdict(shape), "dtype": str(shape.dtype)}
    memory = TrialMemory(None if run_dir is None else run_dir / TRIALS_FILE, facts, device)
    notes = []
    if section.float8 == "mlp":
        notes.append(f"float8: {use_float8_mlps(model, device)} linear layers of MLPs")
    for block in blocks_of(model):
        block.recomputes = section.recompute == "cheap"
    notes += _choose_attention(model, section.attention, shape, device, memory, world)
    notes += _choose_compile(model, section.compile, shape, loss_of, device, memory, world)
    if world.rank == 0:
        memory.save()
    return notes


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """Yield the transformer blocks of *model*, first to last."""
    return (module for module in model.modules() if isinstance(module, Block))


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> None:
    """Let torch.compile every block, when it is first called.

    Equal blocks share what is compiled; the last one, which may compute fewer tokens, has its own;
    and so has every size of images, in training and in evaluation.
    """
    limits: Any = torch._dynamo.config  # noqa: SLF001 (its public face)
    limits.recompile_limit = max(limits.recompile_limit, _MOST_GRAPHS)
    for block in blocks_of(model):
        block.compile(dynamic=False, backend=backend)


def _uncompile_blocks(model: nn.Module) -> None:
    for block in blocks_of(model):
        block._compiled_call_impl = None  # noqa: SLF001 (there is no public way back)


def _choose_attention(
    model: nn.Module,
    wanted: AttentionName | Literal["auto"],
    shape: StepShape,
    device: torch.device,
    memory: TrialMemory,
    world: World,
) -> list[str]:
    if wanted != "auto":
        use_backend(model, wanted)
        return []
    attention = _attention_shape(model, shape, device)
    if attention is None:
        return []
    if (name := memory.recall("attention")) is None:
        trials = try_backends(
            attention, device=device, dtype=shape.dtype, dropout=_attention_dropout(model)
        )
        times = torch.tensor([min(trial.seconds, 1e9) for trial in trials], dtype=torch.float64)
        summed = world.all_reduce_sum(times).tolist()
        trials = [trial._replace(seconds=sum_) for trial, sum_ in zip(trials, summed, strict=True)]
        name = fastest(trials)
        memory.remember("attention", name, {t.name: _shown(t, world) for t in trials})
    use_backend(model, name)
    return [f"attention: {name} ({memory.shown('attention')})"]


def _attention_shape(
    model: nn.Module, shape: StepShape, device: torch.device
) -> AttentionShape | None:
    """Return what attention of the first block is computed on; None if it is too little to try."""
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


def _attention_dropout(model: nn.Module) -> float:
    return next(m.attn_drop_rate for m in model.modules() if isinstance(m, Attention))


def _shown(trial: Trial, world: World) -> str:
    return trial.problem or f"{1e3 * trial.seconds / world.world_size:.2f} ms"


def _choose_compile(
    model: nn.Module,
    wanted: Literal["auto", "none", "blocks"],
    shape: StepShape,
    loss_of: LossOf,
    device: torch.device,
    memory: TrialMemory,
    world: World,
) -> list[str]:
    """Compile the blocks if that is asked for, or pays."""
    if wanted == "none" or (wanted == "auto" and device.type != "cuda"):
        return []
    compile_blocks(model)
    if wanted == "blocks":
        return []
    if (choice := memory.recall("compile")) is None:
        compiled = step_seconds(model, loss_of, shape)
        _uncompile_blocks(model)
        plain = step_seconds(model, loss_of, shape)
        times = world.all_reduce_sum(torch.tensor([plain, compiled], dtype=torch.float64)).tolist()
        choice = "blocks" if times[1] < _WORTHWHILE * times[0] else "none"
        shown = {"none": f"{1e3 * plain:.1f} ms", "blocks": f"{1e3 * compiled:.1f} ms"}
        memory.remember("compile", choice, shown)
    _uncompile_blocks(model)
    if choice == "blocks":
        compile_blocks(model)
    return [f"compile: {choice} ({memory.shown('compile')})"]


def step_seconds(
    model: nn.Module, loss_of: LossOf, shape: StepShape, *, num_rounds: int = _NUM_ROUNDS
) -> float:
    """Return the median time of a forward and backward pass on grey images; two are not timed.

    The model is as before, afterwards.
    """
    batch = dummy_batch(shape.device_batch_size, shape.img_size)
    device = next(model.parameters()).device
    seconds = []
    for _ in range(num_rounds + 2):
        started_at = time.perf_counter()
        loss_of(model, batch).backward()
        model.zero_grad(set_to_none=True)
        wait_for(device)
        seconds.append(time.perf_counter() - started_at)
    return statistics.median(seconds[2:])


def prepare_model(run: RunContext, model: nn.Module, *, device_batch_size: int) -> nn.Module:
    """Return *model* on its device, in train mode, and fast; to be sharded after this, not before.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: float8 is asked for and torchao is not installed.
    """
    recipe = run.recipe
    if recipe.curriculum.img_sizes and isinstance(model, VisionTransformer):
        model.takes_smaller_images = True
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
