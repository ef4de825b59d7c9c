"""Which implementation of attention is the fastest here, for one shape: found out by trying.

On the same GPU the order changes with the length of the sequence and the version of the libraries,
so that no table does (on H100 cuDNN's is up to 2.3 times FlashAttention 2, on A100 it loses).

Dimensions: B images, N tokens, A heads, E width of a head.
"""

import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vit21k.device import wait_for
from vit21k.models.layers import Attention

AttentionName = Literal["flash", "cudnn", "efficient", "math"]

BACKENDS: dict[AttentionName, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""By the names that recipes give them.  The first one that is not beaten clearly is taken."""

_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
_CLEARLY = 0.9  # of the time: less is within what a busy machine does to a measurement
_NUM_ROUNDS = 5
_SECONDS = 1.0


class AttentionShape(NamedTuple):
    """What attention is computed on."""

    num_images: int
    num_heads: int
    num_tokens: int
    head_width: int


class Trial(NamedTuple):
    """How one implementation did, forward and backward."""

    name: AttentionName
    seconds: float
    """Median; infinite where it does not work."""
    difference: float
    """Largest to plain arithmetic in float32, of the result and of its gradients."""
    problem: str
    """Why it is out of question; empty if it is not."""


def try_backends(
    shape: AttentionShape,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    dropout: float = 0.0,
    seconds: float = _SECONDS,
) -> list[Trial]:
    """Return how each implementation does on random numbers, in the order of `BACKENDS`.

    Rounds are interleaved, so that a busy machine disturbs all alike.  An implementation whose
    result is not that of plain arithmetic, as *dtype* rounds it, is out of question.

    Args:
        shape: Of queries, keys and values.
        device: Where.
        dtype: Of queries, keys and values.
        dropout: Of attention weights; some implementations have none.
        seconds: About how long this may take.
    """
    drawn = torch.Generator().manual_seed(0)
    size = (shape.num_images, shape.num_heads, shape.num_tokens, shape.head_width)
    qkv = [torch.randn(size, generator=drawn).to(device, dtype) for _ in range(3)]
    exact = [
        values.cpu() for values in _outcome("math", [part[:1].float() for part in qkv], dropout=0.0)
    ]
    found = {name: _check(name, qkv, exact, dropout) for name in BACKENDS}
    names = [name for name, trial in found.items() if not trial.problem]
    times: dict[AttentionName, list[float]] = {name: [] for name in names}
    ends_at = time.perf_counter() + seconds
    for number in range(_NUM_ROUNDS):
        for name in names:
            times[name].append(_time(name, qkv, dropout))
        if number and time.perf_counter() > ends_at:
            break
    return [
        trial._replace(seconds=statistics.median(times[name])) if name in times else trial
        for name, trial in found.items()
    ]


def fastest(trials: Sequence[Trial]) -> AttentionName:
    """Return the name of the best one: the first that no other beats by a tenth or more."""
    usable = [trial for trial in trials if not trial.problem]
    best = usable[0]
    for trial in usable[1:]:
        if trial.seconds < _CLEARLY * best.seconds:
            best = trial
    return best.name


def use_backend(model: nn.Module, name: AttentionName | None) -> None:
    """Let every attention of *model* be computed so; None: let torch decide, call by call."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.backend = None if name is None else BACKENDS[name]


def _check(name: AttentionName, qkv: list[Tensor], exact: list[Tensor], dropout: float) -> Trial:
    """Return whether *name* works and is right; its time is not measured here."""
    nothing = Trial(name, float("inf"), float("inf"), "")
    try:
        _time(name, qkv, dropout)
        found = _outcome(name, [part[:1] for part in qkv], dropout=0.0)
    except RuntimeError as error:
        return nothing._replace(problem=str(error).partition("\n")[0] or type(error).__name__)
    difference = max(
        float((mine.cpu().float() - wanted).abs().max())
        for mine, wanted in zip(found, exact, strict=True)
    )
    right = difference <= _TOLERANCES.get(qkv[0].dtype, 1e-2) * max(
        1.0, *(float(wanted.abs().max()) for wanted in exact)
    )
    problem = "" if right else f"differs from plain arithmetic by {difference:.1e}"
    return nothing._replace(difference=difference, problem=problem)


def _outcome(name: AttentionName, qkv: list[Tensor], *, dropout: float) -> list[Tensor]:
    """Return the result of attention and its gradients by queries, keys and values."""
    query, key, value = leaves = [part.detach().clone().requires_grad_() for part in qkv]
    with sdpa_kernel([BACKENDS[name]]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of why a backend does not work
        result = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    result.backward(torch.ones_like(result))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _time(name: AttentionName, qkv: list[Tensor], dropout: float) -> float:
    wait_for(qkv[0].device)
    started_at = time.perf_counter()
    _outcome(name, qkv, dropout=dropout)
    wait_for(qkv[0].device)
    return time.perf_counter() - started_at
