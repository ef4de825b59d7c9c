"""The review page over HTTP, for one person on this machine.

What keeps others out: the socket listens on 127.0.0.1; every address begins with a token that only
the person who started it was shown; the `Host` header must name this machine, so that a page on the
web cannot reach it through a name of its own; decisions must come as JSON from this very page; and
an image is named by the index of its item alone, decoded here, and sent as a small JPEG.
"""

import hmac
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vit21k.data.unread import why_unread
from vit21k.errors import ImageError
from vit21k.report.thumbs import small_jpeg
from vit21k.review.decisions import Action
from vit21k.review.session import ReviewSession
from vit21k.serving.limits import Arrivals, Limits, RefusedError, read_body

HOST = "127.0.0.1"
LIMITS = Limits(max_body_bytes=4_096, max_connections=64)
PICTURE_SIDE = 640

_ASSETS = {
    "": ("review.html", "text/html"),
    "review.js": ("review.js", "text/javascript"),
    "review.css": ("review.css", "text/css"),
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


def review_app(session: ReviewSession, token: str, port: int) -> ASGIApp:
    """Return the application that serves *session* below ``/token/`` on *port* of this machine."""
    hosts = [f"{host}:{port}" for host in (HOST, "localhost")]
    arrivals = Arrivals(LIMITS.max_connections * LIMITS.max_body_bytes)

    def items(request: Request) -> Response:
        return JSONResponse(session.items(request.path_params["start"]))

    def picture(request: Request) -> Response:
        index, which = request.path_params["index"], request.path_params["which"]
        return Response(_small_picture(session, index, which), media_type="image/jpeg")

    async def decide(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in hosts:
            raise RefusedError(403, "other_page", "decisions come from the page alone")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise RefusedError(415, "not_json", "a decision is a JSON object")
        body = await read_body(request, LIMITS, arrivals)
        return JSONResponse(await run_in_threadpool(_decide, session, body))

    app = Starlette(
        routes=[
            *(Route(f"/{{token}}/{name}", _asset(name)) for name in _ASSETS),
            Route("/{token}/items/{start:int}", items),
            Route("/{token}/picture/{index:int}/{which:int}", picture),
            Route("/{token}/decide", decide, methods=["POST"]),
        ],
        exception_handlers={RefusedError: _refused, IndexError: _no_item},
    )
    app.router.redirect_slashes = False
    return _guarded(app, token, hosts)


def _guarded(app: ASGIApp, token: str, hosts: Sequence[str]) -> ASGIApp:
    """Return *app* for requests to one of *hosts* with *token*, its answers with strict headers."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_strict(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer = app
        if scope["type"] == "http":
            given, _, _ = scope["path"].removeprefix("/").partition("/")
            if Headers(scope=scope).getlist("host") not in [[host] for host in hosts]:
                answer = PlainTextResponse("Misdirected Request", 421)
            elif not hmac.compare_digest(given.encode(), token.encode()):
                answer = PlainTextResponse("Not Found", 404)
        await answer(scope, receive, send_strict)

    return guarded


def _asset(name: str) -> Callable[[Request], Response]:
    def asset(_request: Request) -> Response:
        file, media_type = _ASSETS[name]
        content = files("vit21k.review").joinpath(file).read_bytes()
        return Response(content, media_type=media_type)

    return asset


def _small_picture(session: ReviewSession, index: int, which: int) -> bytes:
    try:
        content = session.queue.read(index, which)
    except (ImageError, OSError) as error:
        raise RefusedError(503, "unread", f"could not be read: {why_unread(error)}") from None
    try:
        return small_jpeg(content, PICTURE_SIDE)
    except ImageError as error:
        raise RefusedError(422, "bad_image", f"cannot be decoded: {error.message}") from None


def _decide(session: ReviewSession, body: bytes) -> dict[str, Any]:
    """Keep the decision in *body*; it is on disk when this returns."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or type(fields.get("index")) is not int:
        raise RefusedError(400, "bad_decision", "a decision is a JSON object with an index")
    index, action = fields["index"], fields.get("action")
    try:
        if action == Action.UNDO:
            return session.undo(index)
        is_confirmed = fields.get("is_confirmed") is True
        return session.decide(index, action, fields.get("wnid", ""), is_confirmed=is_confirmed)
    except (IndexError, ValueError) as error:
        raise RefusedError(400, "bad_decision", str(error)) from None
    except OSError as error:
        raise RefusedError(507, "not_kept", why_unread(error)) from None


async def _refused(_request: Request, refusal: Any) -> Response:
    return PlainTextResponse(refusal.message, refusal.status, refusal.headers)


async def _no_item(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("Not Found", 404)
