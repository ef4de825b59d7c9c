"""An HTTP server with ranges and listings on loopback, with delays, failures and wrong answers.

`python tests/object_server.py FOLDER [LATENCY_S]` serves a folder from a process of its own.
"""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import xxhash

Fault = Callable[[str, str], str | None]
"""Of (method, path): `500`, `503`, `reset`, `short`, `slow`; None: answer."""

_DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


class ObjectServer:
    """Serves *files* by path.

    Attributes:
        files: Content by path, without a slash at the start.
        fault: Asked before each answer.
        latency_s: Waited before each answer.
        requests: Method, path and Range header of each request.
        url: Of the server.
        tags: Entity tags by path; default: of the content.
        has_ranges: Whether requests for a part are understood.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.fault: Fault = lambda _method, _path: None
        self.latency_s = 0.0
        self.requests: list[tuple[str, str, str]] = []
        self.url = ""
        self.tags: dict[str, str] = {}
        self.has_ranges = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(self.latency_s)
                if not await self._answer(head.decode(), writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: str, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection stays."""
        line, *fields = head.rstrip().split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        path = unquote(target.lstrip("/"))
        asked = headers.get("range", "")
        self.requests.append((method, path, asked))
        fault, is_head = self.fault(method, path), method == "HEAD"
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "slow":
            await asyncio.sleep(0.5)
        elif fault in {"500", "503"}:
            return await self._send(writer, int(fault), b"out of order", is_head=is_head)
        if path not in self.files:
            page = self._page(path)
            status = 200 if page else 404
            return await self._send(writer, status, page, is_head=is_head, content_type="text/html")
        return await self._send_object(writer, method, path, asked, is_short=fault == "short")

    async def _send_object(
        self, writer: asyncio.StreamWriter, method: str, path: str, asked: str, *, is_short: bool
    ) -> bool:
        content = self.files[path]
        more = {"Accept-Ranges": "bytes", "Last-Modified": _DATE, "ETag": self._tag(path)}
        status, part = 200, memoryview(content)
        if asked and self.has_ranges:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
            if start >= len(content):
                return await self._send(writer, 416, b"")
            status, part = 206, part[start:end]
            more["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return await self._send(
            writer, status, part, is_head=method == "HEAD", is_short=is_short, **more
        )

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        content: bytes | memoryview,
        *,
        is_head: bool = False,
        is_short: bool = False,
        content_type: str = "application/octet-stream",
        **more: str,
    ) -> bool:
        fields = {"Content-Type": content_type, "Content-Length": str(len(content)), **more}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if not is_head:
            writer.write(content[: len(content) // 2] if is_short else content)
        await writer.drain()
        return not is_short

    def _page(self, path: str) -> bytes:
        """Return the listing of a folder; empty if there is none."""
        prefix = path.rstrip("/") + "/" if path.strip("/") else ""
        inner = [name[len(prefix) :] for name in self.files if name.startswith(prefix)]
        names = {name.partition("/")[0] + ("/" if "/" in name else "") for name in inner}
        links = [f'<a href="{quote(name)}">x</a>' for name in sorted(names)]
        return "\n".join(links).encode()

    def _tag(self, path: str) -> str:
        if path not in self.tags:
            self.tags[path] = f'"{xxhash.xxh3_64_hexdigest(self.files[path])}"'
        return self.tags[path]


@contextmanager
def running(files: Mapping[str, bytes]) -> Iterator[ObjectServer]:
    """Run a server of *files* in a thread."""
    server = ObjectServer(files)
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(_stop, loop, listening)
        thread.join()
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop, listening: Any) -> None:
    listening.close()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    asyncio.gather(*tasks, return_exceptions=True).add_done_callback(lambda _: loop.stop())
    if not tasks:
        loop.stop()


def main(folder: Path, latency_s: float = 0.0) -> None:
    """Serve *folder*; the address is printed."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    with running(files) as server:
        server.latency_s = latency_s
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(float, sys.argv[2:]))
