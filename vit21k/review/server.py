"""The review page over HTTP, for one person on this machine.

What keeps others out: the socket listens on 127.0.0.1; every address begins with a token that only
the person who started it was shown; the `Host` header must name this machine, so that a page on the
web cannot reach it through a name of its own; decisions must come as JSON from this very page; and
a picture is named by the number of its item alone, decoded here, and sent as a small JPEG.
"""

import errno
import hmac
import json
import secrets
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, ClassVar

from vit21k.data.unread import why_unread
from vit21k.errors import ImageError, UsageError
from vit21k.report.thumbs import small_jpeg
from vit21k.review.decisions import Action
from vit21k.review.session import ReviewSession

HOST = "127.0.0.1"
MAX_BODY_BYTES = 4_096
PICTURE_SIDE = 640

_ASSETS = {
    "": ("review.html", "text/html; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    "review.svg": ("review.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _RefusedError(Exception):
    """A request that is not answered; *reason* says why."""

    def __init__(self, status: HTTPStatus, reason: str = "") -> None:
        super().__init__(reason or status.phrase)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """Serves a queue, and takes decisions on its items.

    Attributes:
        session: What is looked at, and where decisions go.
        token: The first part of every address.
    """

    daemon_threads = True

    def __init__(self, session: ReviewSession, *, port: int = 0) -> None:
        """Listen on *port*; 0: any that is free.

        Raises:
            UsageError: The port is in use.
        """
        self.session = session
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            raise UsageError(
                f"port {port} cannot be used: {error.strerror}",
                hint="leave `--port` out, and any that is free is taken",
            ) from error

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that went away; it asks again."""


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    protocol_version = "HTTP/1.1"
    server_version = "vit21k"
    sys_version = ""
    timeout: ClassVar[int] = 30

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep quiet: the token must not end up in a log."""

    def _answer(self, make: Callable[[str], tuple[bytes, str]]) -> None:
        try:
            content, content_type = make(self._path_below_token())
            self._send(HTTPStatus.OK, content, content_type)
        except _RefusedError as error:
            self.close_connection = True  # what the body holds is not read
            self._send(error.status, str(error).encode(), "text/plain; charset=utf-8")

    def _path_below_token(self) -> str:
        """Return the path after the token.

        Raises:
            _RefusedError: Another host was asked for, or another token.
        """
        port = self.server.server_port
        if self.headers.get_all("Host") not in ([f"{HOST}:{port}"], [f"localhost:{port}"]):
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST)
        token, slash, rest = self.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise _RefusedError(HTTPStatus.NOT_FOUND)
        return rest

    def _get(self, path: str) -> tuple[bytes, str]:
        if path in _ASSETS:
            name, content_type = _ASSETS[path]
            return files("vit21k.review").joinpath(name).read_bytes(), content_type
        match path.split("/"):
            case ["items", start]:
                return _json(self.server.session.items(_number(start)))
            case ["picture", index, which]:
                return self._picture(_number(index), _number(which)), "image/jpeg"
        raise _RefusedError(HTTPStatus.NOT_FOUND)

    def _picture(self, index: int, which: int) -> bytes:
        try:
            content = self.server.session.queue.read(index, which)
        except IndexError:
            raise _RefusedError(HTTPStatus.NOT_FOUND) from None
        except (ImageError, OSError) as error:
            reason = f"could not be read: {why_unread(error)}"
            raise _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, reason) from None
        try:
            return small_jpeg(content, PICTURE_SIDE)
        except ImageError as error:
            reason = f"cannot be decoded: {error.message}"
            raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, reason) from None

    def _post(self, path: str) -> tuple[bytes, str]:
        if path != "decide":
            raise _RefusedError(HTTPStatus.NOT_FOUND)
        fields = self._body()
        session, index = self.server.session, fields.get("index")
        if type(index) is not int:
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        try:
            if fields.get("action") == Action.UNDO:
                return _json(session.undo(index))
            action, wnid = fields.get("action"), fields.get("wnid", "")
            is_confirmed = fields.get("is_confirmed") is True
            return _json(session.decide(index, action, wnid, is_confirmed=is_confirmed))
        except (IndexError, ValueError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST) from None
        except OSError:
            raise _RefusedError(HTTPStatus.INSUFFICIENT_STORAGE) from None

    def _body(self) -> dict[str, Any]:
        """Return the JSON object that was sent.

        Raises:
            _RefusedError: It comes from another page, is too long, or is none.
        """
        port = self.server.server_port
        origin = self.headers.get("Origin")
        if origin not in (None, f"http://{HOST}:{port}", f"http://localhost:{port}"):
            raise _RefusedError(HTTPStatus.FORBIDDEN)
        if self.headers.get_content_type() != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit():
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED)
        if len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        try:
            fields = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST) from None
        if not isinstance(fields, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST)
        return fields

    def _send(self, status: HTTPStatus, content: bytes, content_type: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:  # noqa: PLR2004
        raise _RefusedError(HTTPStatus.NOT_FOUND)
    return int(text)


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value, ensure_ascii=False).encode(), "application/json"
