"""The web application: ``POST /predict``, ``GET /health``, and a page to drop an image on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from vit21k.checkpoint.model_folder import ModelCard
from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError
from vit21k.inference.predict import ClassScore, eval_transform, select_classes
from vit21k.machine import num_threads
from vit21k.serving.batcher import Batcher, BatcherStoppedError, Pixels
from vit21k.serving.server import Arrivals, Limits, RefusedError, gone_away, read_body, read_number

_TOP_K = 5
_BUSY = 503
_SEND_THE_FILE = "send the file itself as the body: curl --data-binary @cat.jpg URL"
_FAILURES_THAT_LAST = 3  # batches in a row
_PATHS = ("/", "/health", "/predict")
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass
class Counts:
    """Counts of requests.

    Attributes:
        num_predicted: Requests answered with a prediction.
        num_refused: Requests refused, for any reason.
        num_in_flight: Requests whose body has arrived and is being decoded or computed.
    """

    num_predicted: int = 0
    num_refused: int = 0
    num_in_flight: int = 0


class Service:
    """The model behind the routes.

    Args:
        card: The model card.
        batcher: Computes the probabilities.
        limits: Limits of a request.
    """

    def __init__(self, card: ModelCard, batcher: Batcher, limits: Limits) -> None:
        self.counts = Counts()
        self._card = card
        self._batcher = batcher
        self.limits = limits
        self._arrivals = Arrivals(limits.max_in_flight * limits.max_body_bytes)
        self._transform = eval_transform(card.eval_settings)
        self._decoders = ThreadPoolExecutor(num_threads(), "decode")
        self._page = files("vit21k.serving").joinpath("page.html").read_text(encoding="utf-8")

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                Route("/predict", self.predict, methods=["POST"]),
            ],
            exception_handlers={404: _no_route, 405: _no_route, Exception: _failed},
            lifespan=self._lifespan,
        )

    async def page(self, _request: Request) -> Response:
        """Answer with the page to drop an image on."""
        return HTMLResponse(self._page, headers=_HEADERS)

    async def health(self, _request: Request) -> Response:
        """Answer with the model and the counts; 503 if no prediction can be expected."""
        status = "ok"
        if self._batcher.has_stopped:
            status = "stopped"
        elif self._batcher.num_failures_in_a_row >= _FAILURES_THAT_LAST:
            status = "failing"
        return JSONResponse(
            {
                "status": status,
                "model": self._card.name,
                "num_classes": len(self._card.classes),
                "img_size": self._card.eval_settings.img_size,
                **asdict(self.counts),
                "num_batches": self._batcher.num_batches,
            },
            200 if status == "ok" else 503,
        )

    async def predict(self, request: Request) -> Response:
        """Answer with the top classes of the image in the body."""
        try:
            top = await self._top(request)
        except RefusedError as refusal:
            self.counts.num_refused += 1
            return _error(refusal)
        except BaseException:
            self.counts.num_refused += 1
            raise
        self.counts.num_predicted += 1
        return JSONResponse({"top": [score._asdict() for score in top]})

    async def _top(self, request: Request) -> tuple[ClassScore, ...]:
        asked = request.query_params
        most = len(self._card.classes)
        top_k = read_number(asked, "top_k", default=min(_TOP_K, most), low=1, high=most)
        threshold = read_number(asked, "threshold", default=0, low=0, high=1)
        self._check_room()
        if request.headers.get("content-type", "").startswith(("multipart/", "application/json")):
            raise RefusedError(415, "not_a_file", _SEND_THE_FILE)
        content = await read_body(request, self.limits, self._arrivals)
        if not content:
            raise RefusedError(400, "empty", "the body is empty; it must be an image file")
        with self._in_flight():
            scores_K = await _unless_gone(request, self._scores(content))
        (top,) = select_classes(scores_K[None], self._card, top_k=int(top_k), threshold=threshold)
        return top

    async def _scores(self, content: bytes) -> Tensor:
        loop = asyncio.get_running_loop()
        image_CHW = await loop.run_in_executor(self._decoders, self._decode, content)
        try:
            return await self._batcher.score(image_CHW)
        except BatcherStoppedError:
            raise RefusedError(_BUSY, "stopped", "the batching loop has stopped") from None

    def _check_room(self) -> None:
        """Refuse the request if the maximum number of images is in flight."""
        if self.counts.num_in_flight >= self.limits.max_in_flight:
            raise RefusedError(_BUSY, "busy", "too many concurrent requests; retry in a second")

    @contextmanager
    def _in_flight(self) -> Iterator[None]:
        """Count a request whose body has arrived: slow uploads take no slot."""
        self._check_room()
        self.counts.num_in_flight += 1
        try:
            yield
        finally:
            self.counts.num_in_flight -= 1

    def _decode(self, content: bytes) -> Pixels:
        limits = self.limits
        try:
            image = decode_rgb(
                content, max_pixels=limits.max_pixels, max_seconds=limits.max_decode_seconds
            )
            return self._transform(image)
        except ImageError as error:
            raise RefusedError(422, "bad_image", error.message) from error

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(self._batcher.run())
        task.add_done_callback(_log_end)
        try:
            yield
        finally:
            task.cancel()
            self._decoders.shutdown(wait=False, cancel_futures=True)


async def _unless_gone(request: Request, work: Awaitable[Tensor]) -> Tensor:
    """Return the result of *work*, or cancel it when the client disconnects.

    Queued work is removed from the queue; decoding or computing that has begun is finished.

    Raises:
        RefusedError: The client has disconnected.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise gone_away()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client of *request*, whose body is read, disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _log_end(task: "asyncio.Task[None]") -> None:
    """Log why the batching loop has ended, unless it was cancelled."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.getLogger("uvicorn.error").error("the batching loop ended", exc_info=error)


def _error(refusal: RefusedError) -> Response:
    headers = {"Retry-After": "1"} if refusal.status == _BUSY else refusal.headers
    content = {"error": {"kind": refusal.kind, "message": refusal.message}}
    return JSONResponse(content, refusal.status, headers)


async def _no_route(request: Request, _reason: Exception) -> Response:
    status, kind = (405, "wrong_method") if request.url.path in _PATHS else (404, "not_found")
    asked = f"{request.method} {request.url.path[:100]}"
    message = f"no {asked}; routes: GET /, GET /health, POST /predict"
    return _error(RefusedError(status, kind, message))


async def _failed(_request: Request, _reason: Exception) -> Response:
    return _error(RefusedError(500, "internal", "internal error; see the log of the server"))
