"""The HTTP service: what answers at which path; docs/serving.md is its manual."""

import asyncio
import base64
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.metadata import version
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from s3diff_runtime.errors import RequestError, TooLarge, is_refusal
from s3diff_runtime.serving.bodies import Mailroom, Refusal, Refused, Sending, until_gone
from s3diff_runtime.serving.exchange import Exchange, Exchanges
from s3diff_runtime.serving.metrics import Metrics
from s3diff_runtime.serving.openapi import ABOUT, ESTIMATE, HEALTH, READINESS, UPSCALE
from s3diff_runtime.serving.page import FILES
from s3diff_runtime.serving.picture_request import PictureRequest, read_texts
from s3diff_runtime.serving.service import Answer, Service, T, Visit

EVENTS = "text/event-stream"
_HEARTBEAT = 10.0
"""Seconds after which a stream says that it is alive: proxies cut those that are silent."""
_PIECE = 2**18
"""Bytes handed to the server at a time: so much of an answer waits in it for a client that reads slowly."""
_logger = logging.getLogger("s3diff_runtime.serving")


class Site:
    """What answers requests.

    Args:
        service: does the work.
        mailroom: reads what clients send.
        seconds: within which a picture must be answered.
        token: that clients must show; None lets everybody in.
        on_failed_start: called when the network fails before it was ready once.
    """

    def __init__(
        self,
        service: Service,
        mailroom: Mailroom,
        seconds: float,
        token: str | None,
        on_failed_start: Callable[[BaseException], None],
    ) -> None:
        self._service, self._mailroom, self._seconds, self._token = service, mailroom, seconds, token
        self._on_failed_start = on_failed_start

    def app(self, metrics: Metrics) -> ASGIApp:
        """The application, with all paths."""
        app = FastAPI(
            title="s3diff-export",
            description="Upscales photographs ×4.",
            version=version("s3diff-export"),
            docs_url=None,
            redoc_url=None,
            lifespan=self._life,
        )
        known = [Depends(self._authorise)]
        app.add_api_route("/v1/upscale", self.upscale, methods=["POST"], dependencies=known, **UPSCALE)
        app.add_api_route("/v1/estimate", self.estimate, methods=["POST"], dependencies=known, **ESTIMATE)
        app.add_api_route("/v1/about", self.about, methods=["GET"], dependencies=known, **ABOUT)
        app.add_api_route("/healthz", self.health, methods=["GET"], **HEALTH)
        app.add_api_route("/readyz", self.readiness, methods=["GET"], **READINESS)

        async def scrape() -> Response:
            return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

        hidden: dict[str, Any] = {"include_in_schema": False}
        app.add_api_route("/metrics", scrape, methods=["GET"], dependencies=known, **hidden)
        for path, (content, kind) in FILES.items():
            app.add_api_route(path, _file(content, kind), methods=["GET", "HEAD"], **hidden)
        app.add_exception_handler(HTTPException, _refusal)
        app.add_exception_handler(ClientDisconnect, _nobody)
        app.add_exception_handler(Exception, _bug)
        paths = frozenset(route.path for route in app.routes if isinstance(route, Route))
        return Exchanges(app, metrics, paths)

    # --- answers ------------------------------------------------------------------------------------

    async def upscale(self, request: Request) -> Response:
        """Upscale a picture ×4. The body is its file, or a form with it; the answer is the picture.

        Clients that accept text/event-stream get events: progress, and at last result or error.
        """
        with _refusing():
            asked = read_texts(PictureRequest, request.query_params.multi_items())
            self._service.check(asked)
            visit = self._service.upscale(await self._mailroom.picture(request), asked)
        if EVENTS in request.headers.get("accept", ""):
            return await self._stream(request, visit)
        answer = await self._awaited(request, visit)
        Exchange.of(request.scope).facts |= _logged(answer)
        headers = _headers(answer) | {"Content-Length": str(len(answer.content))}
        return Sending(_pieces(answer.content), self._seconds, headers, _media_type(answer))

    async def estimate(self, request: Request) -> Response:
        """Read the scores `noise` and `blur` off a picture, in [0, 1]."""
        with _refusing():
            if request.query_params:
                raise RequestError("this path takes no parameters")
            self._service.check(PictureRequest())
            visit = self._service.estimate(await self._mailroom.picture(request))
        return JSONResponse(await self._awaited(request, visit))

    async def about(self) -> JSONResponse:
        """What this service can do, and its limits."""
        return JSONResponse(self._service.described() | {"max_bytes": self._mailroom.most})

    async def health(self) -> JSONResponse:
        """Whether the process answers."""
        return JSONResponse({"status": "alive"})

    async def readiness(self) -> JSONResponse:
        """Whether pictures are taken: the network has run once."""
        ready = self._service.ready
        return JSONResponse({"status": "ready" if ready else "warming up"}, 200 if ready else 503)

    # --- how ----------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _life(self, app: FastAPI) -> AsyncIterator[None]:
        """Warm up while the first requests are told to wait; at the end finish what is inside."""

        def tell(task: asyncio.Task[None]) -> None:
            if task.cancelled():
                return
            if error := task.exception():
                self._on_failed_start(error)
            else:
                _logger.info("ready")

        warming = asyncio.create_task(self._service.warm_up())
        warming.add_done_callback(tell)
        yield
        with suppress(Exception):  # told by `tell`
            await warming
        await asyncio.to_thread(self._service.close)

    async def _authorise(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self._token is None:
            return
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
            raise Refused(
                401, "no token, or a wrong one: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def _awaited(self, request: Request, visit: Visit[T]) -> T:
        """The answer, in time, for a client that is still there."""
        try:
            gone = await _sooner(until_gone(request), visit.task, self._seconds)
        finally:
            self._service.abandon(visit)
        if not visit.task.done():
            raise ClientDisconnect if gone else self._too_late()
        with _refusing():
            return visit.task.result()

    def _too_late(self) -> Refused:
        return Refused(504, f"the picture was not done within {self._seconds:g} s; try a smaller one")

    # --- streams ------------------------------------------------------------------------------------

    async def _stream(self, request: Request, visit: Visit[Answer]) -> Response:
        """Events; a picture that cannot be read is refused before the first one, with a status of its own."""
        if not await _sooner(visit.steps.get(), visit.task, self._seconds):
            if not visit.task.done():
                self._service.abandon(visit)
                raise self._too_late()
            with _refusing():
                visit.task.result()
        return Sending(self._events(request, visit), 2 * self._seconds, {}, EVENTS)

    async def _events(self, request: Request, visit: Visit[Answer]) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        try:
            yield _event("progress", {"done": 0, "tiles": 0})
            while not visit.task.done():
                left = min(deadline - loop.time(), _HEARTBEAT)
                if step := await _sooner(visit.steps.get(), visit.task, left):
                    yield _event("progress", {"done": step[0], "tiles": step[1]})
                elif not visit.task.done():
                    if loop.time() >= deadline:
                        raise self._too_late()
                    yield b": still here\n\n"
            with _refusing():
                answer = visit.task.result()
            Exchange.of(request.scope).facts |= _logged(answer)
            picture = base64.b64encode(answer.content).decode()
            result = _event("result", {**answer.facts, "type": _media_type(answer), "picture": picture})
            async for piece in _pieces(result):
                yield piece
        except Refused as refused:
            exchange = Exchange.of(request.scope)
            exchange.status = refused.status_code  # what the log and the metrics tell; 200 has been sent
            exchange.facts["error"] = refused.detail
            yield _event("error", {"status": refused.status_code, "error": refused.detail})
        finally:
            self._service.abandon(visit)


async def _sooner(waited: Coroutine[Any, Any, T], task: asyncio.Task[Any], seconds: float) -> T | None:
    """What is waited for, where it comes before a task has ended and the time is over; else None."""
    waiting = asyncio.create_task(waited)
    try:
        await asyncio.wait({task, waiting}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()


@contextmanager
def _refusing() -> Iterator[None]:
    """What goes wrong, as the client is told; what is ours is logged, and the client gets a 500."""
    try:
        yield
    except (Refused, ClientDisconnect):
        raise
    except TooLarge as error:
        # The rest is for the command line.
        raise Refused(413, f"{str(error).partition('; ')[0]}; make it smaller first") from error
    except Exception as error:
        if is_refusal(error):
            raise Refused(400, str(error)) from error
        _logger.error("failed", exc_info=error)
        raise Refused(500, "the work on this picture failed; the log of the service says why") from error


def _file(content: bytes, kind: str) -> Callable[[], Any]:
    async def answer() -> Response:
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return answer


async def _refusal(request: Request, error: Exception) -> Response:
    refused, exchange = cast(HTTPException, error), Exchange.of(request.scope)
    message = refused.detail if isinstance(error, Refused) else refused.detail.lower()  # the framework's
    exchange.facts["error"] = message
    body = {"error": message, "request": exchange.id}
    return Refusal(body, refused.status_code, refused.headers)


async def _nobody(request: Request, error: Exception) -> Response:
    """For a client that has gone; it is never sent. Proxies log such with 499 as well."""
    Exchange.of(request.scope).facts["error"] = "the client went away"
    return Response(status_code=499)


async def _bug(request: Request, error: Exception) -> Response:
    """For what nobody foresaw; the server logs its traceback."""
    exchange = Exchange.of(request.scope)
    return Refusal({"error": "the service failed; its log says why", "request": exchange.id}, 500)


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _PIECE):
        yield content[start : start + _PIECE]


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def _media_type(answer: Answer) -> str:
    return f"image/{answer.format.name.lower()}"


def _headers(answer: Answer) -> dict[str, str]:
    facts = {name: value for name, value in answer.facts.items() if value not in (None, [])}
    headers = {f"S3Diff-{name.title()}": _header_text(value) for name, value in facts.items()}
    stages = (f"{name};dur={seconds * 1000:.1f}" for name, seconds in answer.seconds.items())
    return headers | {"Server-Timing": ", ".join(stages)}


def _header_text(value: object) -> str:
    text = "; ".join(value) if isinstance(value, list) else str(value)
    return text.encode("ascii", "replace").decode().replace("\n", " ").replace("\r", " ")


def _logged(answer: Answer) -> dict[str, Any]:
    stages = {name: round(seconds, 4) for name, seconds in answer.seconds.items()}
    return {**answer.facts, "sent": len(answer.content), "stages": stages}
