"""Options of the commands that compute: where, and with how many threads."""

from typing import Annotated

import typer

from vit21k.machine import num_threads

Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; default: the GPU if there is one.")
]
NumWorkers = Annotated[
    int | None, typer.Option(min=1, help="Decoding threads; default: the cores, at most 16.")
]
_MOST_WORKERS = 16


def device_or_best(device: str | None) -> str:
    """Return *device*, checked; if it is None, the GPU if there is one.

    Raises:
        UsageError: torch has no such device here.
    """
    import torch

    from vit21k.errors import UsageError

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: built without CUDA
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"cannot compute on `{device}`: {reason}", hint="`vit21k doctor` shows what there is"
        ) from error
    return device


def workers_or_cores(num_workers: int | None) -> int:
    """Return *num_workers*; if it is None, the cores this process may use, at most 16."""
    return num_workers or min(_MOST_WORKERS, num_threads())
