"""A real web server on loopback, in a thread of this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from vit21k.serving.server import Limits, bind, web_server


@contextmanager
def running_server(app: ASGIApp, limits: Limits, host: str = "127.0.0.1") -> Iterator[int]:
    """Serve *app* until the block ends; yield the port."""
    listening = bind(host, 0)
    server = web_server(app, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()
