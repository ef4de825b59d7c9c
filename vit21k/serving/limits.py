"""What a server takes from strangers, and how it says no."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes.

    Attributes:
        max_body_bytes: Of a file.
        max_pixels: Of a picture, before it is decoded.
        max_in_flight: Requests at a time; more are turned away.
        body_seconds: How long a client may take to send a file.
    """

    max_body_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    max_in_flight: int = 128
    body_seconds: float = 20.0


class RefusedError(Exception):
    """A request that is not answered with a prediction: *status* and what the client is told."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return the body of *request*, a picture's file.

    Raises:
        RefusedError: It is a form, or empty, or too large, or does not arrive.
    """
    if request.headers.get("content-type", "").startswith(("multipart/", "application/json")):
        raise RefusedError(
            415, "not_a_file", "send the file itself as the body: curl --data-binary @cat.jpg URL"
        )
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    content = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                content += part
                if len(content) > limits.max_body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise RefusedError(
            408, "too_slow", f"the file did not arrive within {limits.body_seconds:g} seconds"
        ) from None
    except ClientDisconnect:
        raise RefusedError(400, "disconnected", "the client went away") from None
    if not content:
        raise RefusedError(400, "empty", "the body is empty; it must be a picture's file")
    return bytes(content)


def read_number(
    parameters: Mapping[str, str], name: str, *, default: float, low: float, high: float
) -> float:
    """Return the query parameter *name*.

    Raises:
        RefusedError: It is no number from *low* to *high*.
    """
    text = parameters.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:  # also what is no number
        raise RefusedError(
            400, "bad_parameter", f"{name} is `{text[:50]}`; it must be {low:g} to {high:g}"
        )
    return value


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413, "too_large", f"the file is larger than {limits.max_body_bytes / 1e6:g} MB"
    )
