"""The review page over HTTP, for one person on this machine.

Access control: the socket listens on 127.0.0.1; every address begins with a secret token; the
`Host` header must name this machine, against DNS rebinding; decisions must be JSON sent by the page
itself; images are addressed by the index of their item, decoded here, and sent as small JPEGs.
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

from vit21k.errors import ImageError
from vit21k.report.galleries import small_jpeg
from vit21k.review.decisions import ACTIONS, Action, Decision, DecisionLog
from vit21k.review.queue import Item, Queue
from vit21k.serving.server import Arrivals, Limits, RefusedError, read_body
from vit21k.sources.read import why_unread

MAX_ITEMS = 200

_NO_STRING = "an action or a label is not a string"
_WRONG_LABEL = "a label is missing, or is not one of the image"


class ReviewSession:
    """A queue and its decisions, as JSON values."""

    def __init__(self, queue: Queue, log: DecisionLog) -> None:
        self.queue = queue
        self._log = log

    def items(self, start: int) -> dict[str, Any]:
        """Return at most `MAX_ITEMS` items from index *start*, and the counts.

        Raises:
            IndexError: There are fewer items.
        """
        if start > len(self.queue):
            raise IndexError(start)
        stop = min(start + MAX_ITEMS, len(self.queue))
        return {
            "total": len(self.queue),
            "kinds": self.queue.counts(),
            "decided": self._log.counts(),
            "items": [
                _fields(index, item, self._in_effect_on(item))
                for index in range(start, stop)
                for item in [self.queue.item(index)]
            ],
        }

    def decide(
        self, index: int, action: object, wnid: object = "", *, is_confirmed: bool = False
    ) -> dict[str, Any]:
        """Store a decision on an item; it is on disk when this returns.

        Dropping the last label of an image removes the image, and needs *is_confirmed*.

        Returns:
            The item, and "must_confirm": whether the decision was refused for that reason.

        Raises:
            IndexError: There is no such item.
            ValueError: The decision is not possible.
            OSError: The disk is full or failing.
        """
        item = self.queue.item(index)
        decision = _decision(item, action, wnid)
        must_confirm = not is_confirmed and self._drops_last_label(item, decision)
        if not must_confirm:
            self._log.add(decision)
        return {**self._answer(index), "undone": None, "must_confirm": must_confirm}

    def undo(self, index: int) -> dict[str, Any]:
        """Undo the last decision in effect, on any item.

        Returns:
            Item *index*, and "undone": the item of that decision; None if there was none.

        Raises:
            IndexError: There is no item *index*.
            OSError: The disk is full or failing.
        """
        self.queue.item(index)
        last = self._log.undo()
        undone = last and {
            "kind": str(last.kind), "path": last.path, "other_path": last.other_path
        }  # fmt: skip
        return {**self._answer(index), "undone": undone, "must_confirm": False}

    def _answer(self, index: int) -> dict[str, Any]:
        item = self.queue.item(index)
        decisions = self._in_effect_on(item)
        return {"item": _fields(index, item, decisions), "decided": self._log.counts()}

    def _in_effect_on(self, item: Item) -> list[Decision]:
        """Return the decisions in effect on *item*, except those on other bytes of that path."""
        decisions = self._log.by_item.get(item.key, [])
        return [one for one in decisions if not one.digest or item.digest in ("", one.digest)]

    def _drops_last_label(self, item: Item, decision: Decision) -> bool:
        dropped = {one.wnid for one in (*self._in_effect_on(item), decision)}
        is_new = decision not in self._in_effect_on(item)
        return decision.action is Action.DROP and is_new and dropped >= set(item.wnids)


def _decision(item: Item, action: object, wnid: object) -> Decision:
    if not isinstance(action, str) or not isinstance(wnid, str):
        raise ValueError(_NO_STRING)  # noqa: TRY004 (an error of the client, not of the caller)
    if bool(wnid) != (action == Action.DROP) or (wnid and wnid not in item.wnids):
        raise ValueError(_WRONG_LABEL)
    if action not in ACTIONS[item.kind]:
        raise ValueError(f"a {item.kind} cannot be decided by {action}")
    return Decision(
        action=Action(action),
        kind=item.kind,
        path=item.path,
        digest=item.digest,
        other_path=item.other_path,
        wnid=wnid,
    )


def _fields(index: int, item: Item, decisions: list[Decision]) -> dict[str, Any]:
    return {
        "index": index,
        "kind": str(item.kind),
        "path": item.path,
        "other_path": item.other_path,
        "wnids": item.wnids,
        "names": item.names,
        "about": item.about,
        "num_images": item.num_images,
        "decisions": [{"action": str(one.action), "wnid": one.wnid} for one in decisions],
    }


HOST = "127.0.0.1"
LIMITS = Limits(max_body_bytes=4_096, max_connections=64)
IMAGE_SIDE = 640

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
    """Return the application that serves *session* below ``/token/`` on *port*."""
    hosts = [f"{host}:{port}" for host in (HOST, "localhost")]
    arrivals = Arrivals(LIMITS.max_connections * LIMITS.max_body_bytes)

    def items(request: Request) -> Response:
        return JSONResponse(session.items(request.path_params["start"]))

    def image(request: Request) -> Response:
        index, which = request.path_params["index"], request.path_params["which"]
        return Response(_small_image(session, index, which), media_type="image/jpeg")

    async def decide(request: Request) -> Response:
        origin = request.headers.get("origin")
        if origin is not None and origin.removeprefix("http://") not in hosts:
            raise RefusedError(403, "other_page", "decisions must come from the review page")
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise RefusedError(415, "not_json", "a decision is a JSON object")
        body = await read_body(request, LIMITS, arrivals)
        return JSONResponse(await run_in_threadpool(_decide, session, body))

    app = Starlette(
        routes=[
            *(Route(f"/{{token}}/{name}", _asset(name)) for name in _ASSETS),
            Route("/{token}/items/{start:int}", items),
            Route("/{token}/image/{index:int}/{which:int}", image),
            Route("/{token}/decide", decide, methods=["POST"]),
        ],
        exception_handlers={RefusedError: _refused, IndexError: _no_item},
    )
    app.router.redirect_slashes = False
    return _guarded(app, token, hosts)


def _guarded(app: ASGIApp, token: str, hosts: Sequence[str]) -> ASGIApp:
    """Return *app*, restricted to *hosts* and *token*, with strict response headers."""

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


def _small_image(session: ReviewSession, index: int, which: int) -> bytes:
    try:
        content = session.queue.read(index, which)
    except (ImageError, OSError) as error:
        raise RefusedError(503, "unread", f"could not be read: {why_unread(error)}") from None
    try:
        return small_jpeg(content, IMAGE_SIDE)
    except ImageError as error:
        raise RefusedError(422, "bad_image", f"cannot be decoded: {error.message}") from None


def _decide(session: ReviewSession, body: bytes) -> dict[str, Any]:
    """Store the decision in *body*; it is on disk when this returns."""
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
        raise RefusedError(507, "not_stored", why_unread(error)) from None


async def _refused(_request: Request, refusal: Any) -> Response:
    return PlainTextResponse(refusal.message, refusal.status, refusal.headers)


async def _no_item(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("Not Found", 404)
