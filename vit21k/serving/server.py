"""A model -> a running web server."""

import signal
import socket
from collections.abc import Callable

import torch
import uvicorn

from vit21k.checkpoint.model_folder import ModelCard
from vit21k.errors import UsageError
from vit21k.inference.predict import class_scores
from vit21k.models.base import ImageClassifier
from vit21k.models.precision import Precision
from vit21k.serving.app import Service
from vit21k.serving.batcher import Pixels, Score

_SHUTDOWN_SECONDS = 10


def score_with(model: ImageClassifier, card: ModelCard, precision: Precision) -> Score:
    """Return what computes probabilities on the CPU with *model*."""

    def score(images_BCHW: Pixels) -> torch.Tensor:
        return class_scores(model, card, torch.from_numpy(images_BCHW), precision).cpu()

    return score


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at *host* and *port*; port 0 is one that is free.

    Raises:
        UsageError: It is in use, or is not this machine's.
    """
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror or error}",
            hint="choose another with --port; 0 takes one that is free",
        ) from error


def serve(
    service: Service, listening: socket.socket, *, started: Callable[[], object] = lambda: None
) -> None:
    """Answer requests until SIGINT or SIGTERM comes; then finish those that are there.

    Args:
        service: The model behind the routes.
        listening: From `bind`; closed at the end.
        started: Called before the first request is answered.
    """
    # At its end uvicorn raises the signal that ended it once more: that is this function's end.
    before = {number: signal.signal(number, _ignore) for number in uvicorn.server.HANDLED_SIGNALS}
    try:
        started()
        web_server(service).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def web_server(service: Service) -> uvicorn.Server:
    """Return the server that answers for *service*."""
    config = uvicorn.Config(
        service.app(),
        log_level="warning",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return uvicorn.Server(config)


def _ignore(_signum: int, _frame: object) -> None:
    pass
