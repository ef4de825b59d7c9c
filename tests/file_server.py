"""A web server on loopback that can break off, forget ranges, redirect and answer falsely."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves *files* by path.

    Attributes:
        files: Path -> content.
        headers: Path -> headers to send besides.
        redirects: Path -> where it points; its headers are sent with the redirect.
        break_after: Bytes after which the next answers break off, one for each.
        ranges: Whether requests for a part are understood.
        requests: Path and ``Range`` header of every request so far.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.redirects: dict[str, str] = {}
        self.break_after: list[int] = []
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    state: FileServer

    def do_GET(self) -> None:
        state = self.state
        state.requests.append((self.path, self.headers.get("Range")))
        if self.path in state.redirects:
            self._head(302, {"Location": state.redirects[self.path]})
        elif self.path in state.files:
            self._send(state.files[self.path])
        else:
            self._head(404, {"Content-Length": "0"})

    def _send(self, content: bytes) -> None:
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        resumed = bool(asked) and self.state.ranges and self.headers.get("If-Range") == tag
        start = int(asked[1]) if asked and resumed else 0
        if start >= len(content) > 0:
            self._head(416, {"Content-Length": "0"})
            return
        part = content[start:]
        self._head(206 if resumed else 200, {"Content-Length": str(len(part)), "ETag": tag})
        if self.state.break_after:
            self.wfile.write(part[: self.state.break_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(part)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.state.headers.get(self.path, {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[FileServer]:
    """Yield a server for the time of the block."""
    state = FileServer()
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
