"""Limits of a server, and how it refuses a request."""

import asyncio
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

_SPARE_FILES = 48  # connections accepted before any is counted, and files that libraries open
_FEWEST_CONNECTIONS = 4
_MOST_CONNECTIONS = 4096
_BODY_NOT_READ = (403, 408, 413, 415)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_body_bytes: Size of a request body.
        max_pixels: Pixels of an image, checked before it is decoded.
        max_decode_seconds: Estimated decoding time of an image.
        max_in_flight: Images decoded or computed at a time; more are refused.
        max_connections: Open connections; a new one replaces the one that has been idle longest.
        header_seconds: Time to send the header of a request.
        body_seconds: Time to send a body.
    """

    max_body_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    max_decode_seconds: float = 2.0
    max_in_flight: int = 128
    max_connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 20.0


def connections_that_fit() -> int:
    """Return how many connections this process may open in addition to its open files."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    try:
        num_open = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:  # no such file system here
        num_open = _SPARE_FILES
    return min(max(soft - num_open - _SPARE_FILES, _FEWEST_CONNECTIONS), _MOST_CONNECTIONS)


class RefusedError(Exception):
    """A refused request.

    Attributes:
        status: HTTP status.
        kind: Machine-readable reason.
        message: Reason in words.
        headers: Headers of the response: the connection closes if the body was not read.
    """

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = {"Connection": "close"} if status in _BODY_NOT_READ else {}


class Arrivals:
    """Bodies that are being received: at most *max_bytes* together.

    When a chunk does not fit, the body that began first is dropped, so that slow clients do not
    block others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes: dict[asyncio.Timeout, int] = {}  # oldest first

    @contextmanager
    def arriving(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Count a body until it has arrived; *timeout* ends it."""
        self._num_bytes[timeout] = 0
        try:
            yield
        finally:
            del self._num_bytes[timeout]

    def add(self, timeout: asyncio.Timeout, num_bytes: int) -> None:
        """Count another chunk of the body that *timeout* ends."""
        self._num_bytes[timeout] += num_bytes
        over = sum(self._num_bytes.values()) - self._max_bytes
        for other, others_bytes in self._num_bytes.items():
            if over <= 0:
                break
            if not other.expired():
                other.reschedule(0)
            over -= others_bytes


async def read_body(request: Request, limits: Limits, arrivals: Arrivals) -> bytes:
    """Return the body of *request*.

    Raises:
        RefusedError: It is too large, too slow, or the client disconnects.
    """
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_body_bytes:
        raise _too_large(limits)
    content = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds) as timeout:
            with arrivals.arriving(timeout):
                async for part in request.stream():
                    content += part
                    if len(content) > limits.max_body_bytes:
                        raise _too_large(limits)
                    arrivals.add(timeout, len(part))
    except TimeoutError:
        raise RefusedError(
            408, "too_slow", f"the body did not arrive within {limits.body_seconds:g} seconds"
        ) from None
    except ClientDisconnect:
        raise gone_away() from None
    return bytes(content)


def gone_away() -> RefusedError:
    """Return the refusal for a client that has disconnected; nobody reads it."""
    return RefusedError(400, "disconnected", "the client disconnected")


def read_number(
    parameters: Mapping[str, str], name: str, *, default: float, low: float, high: float
) -> float:
    """Return the query parameter *name*.

    Raises:
        RefusedError: It is not a number from *low* to *high*.
    """
    text = parameters.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:  # also NaN
        raise RefusedError(
            400, "bad_parameter", f"{name} is `{text[:50]}`; it must be {low:g} to {high:g}"
        )
    return value


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413, "too_large", f"the body is larger than {limits.max_body_bytes / 1e6:g} MB"
    )
