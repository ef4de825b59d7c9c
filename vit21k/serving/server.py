"""Run a web application within limits, for `serve` and `review`."""

import asyncio
import errno
import ipaddress
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from vit21k.errors import UsageError

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


_SHUTDOWN_SECONDS = 10
_BACKLOG = 1024  # connections that the system queues until they are accepted
_ACCEPTED_AT_ONCE = 8  # before any of them is counted: files are limited
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at *host* and *port*; port 0 is a free one.

    Raises:
        UsageError: The port is in use, or the host is not an address of this machine.
    """
    host = host.removeprefix("[").removesuffix("]")
    is_ipv6 = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
            backlog=_BACKLOG,
            dualstack_ipv6=host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            hint = "choose another with --port; 0 is a free one"
        else:
            hint = "--host is an address of this machine: 127.0.0.1, ::1, or 0.0.0.0 for all"
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror or error}", hint=hint
        ) from error


def address_of(listening: socket.socket) -> str:
    """Return the address to open in a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach *host*."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    app: ASGIApp,
    limits: Limits,
    listening: socket.socket,
    *,
    started: Callable[[], object] = lambda: None,
) -> None:
    """Answer requests until SIGINT or SIGTERM; then finish those in progress.

    Args:
        app: The application.
        limits: Limits of its connections.
        listening: From `bind`; closed at the end.
        started: Called before the first request is answered.
    """
    # uvicorn raises the signal that ended it again when it returns; this function ends there.
    before = {number: signal.signal(number, _ignore) for number in uvicorn.server.HANDLED_SIGNALS}
    try:
        started()
        web_server(app, limits).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def web_server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """Return a server of *app* within *limits*."""
    limits_of_server = limits

    class Connection(_Connection):
        """A connection of this server."""

        limits = limits_of_server
        idle: ClassVar[dict[_Connection, None]] = {}
        sending: ClassVar[dict[_Connection, None]] = {}

    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="error",  # requests of unknown clients are not logged
        access_log=False,
        ws="none",
        backlog=_ACCEPTED_AT_ONCE,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """A server with a long backlog that accepts a few connections at a time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(_BACKLOG)


class _Connection(H11Protocol):
    """A connection that is closed if the header of a request does not arrive in time.

    There are at most `Limits.max_connections`: a new one replaces the one that has been idle
    longest, or else the one that has been sending its request longest.  uvicorn's own
    `limit_concurrency` refuses new connections with 503 and does not limit idle ones.

    Attributes:
        limits: Limits of the server.
        idle: Connections of the server that have sent no request header, oldest first.
        sending: Connections that have not sent their complete request.
    """

    limits: ClassVar[Limits]
    idle: ClassVar["dict[_Connection, None]"]
    sending: ClassVar["dict[_Connection, None]"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request; drop another connection if there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            oldest = next(iter((*self.idle, *self.sending)), None)
            if oldest is None:
                transport.write(_FULL)
                transport.close()
                return
            oldest.give_up()
        self._note()

    def data_received(self, data: bytes) -> None:
        """Receive a chunk of a request."""
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        """Wait for the next request of the connection."""
        super().on_response_complete()
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._forget()
        super().connection_lost(exc)

    def give_up(self) -> None:
        """Close the connection at once."""
        self._forget()
        self.connections.discard(self)
        self.transport.abort()

    def _note(self) -> None:
        """Record what the server waits for, and set the deadline."""
        if self.cycle is None or self.cycle.response_complete:
            if self not in self.idle and not self.transport.is_closing():
                self._forget()
                self.idle[self] = None
                self._deadline = self.loop.call_later(self.limits.header_seconds, self.give_up)
        elif not self.cycle.more_body:
            self._forget()
        elif self not in self.sending:
            self._forget()
            self.sending[self] = None

    def _forget(self) -> None:
        self.idle.pop(self, None)
        self.sending.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _ignore(_signum: int, _frame: object) -> None:
    pass
