"""A request and its answer: its id, what came of the body, its line in the log, its place in the metrics."""

import json
import logging
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s3diff_runtime.serving.metrics import Metrics

_KEY = "s3diff_exchange"
_ID = re.compile(rb"[\w.:-]{1,64}")
_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; "
     b"connect-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
     b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip
"""Of every answer: nothing that a page of ours shows comes from elsewhere, and no other page frames it."""
_NAMED = frozenset(vars(logging.makeLogRecord({})))
_logger = logging.getLogger("s3diff_runtime.serving")


@dataclass
class Exchange:
    """What is known of a request while it is answered."""

    id: str
    """As the client or a proxy named it (`X-Request-ID`), else random."""
    received: int = 0
    """Bytes of the body, so far."""
    is_received: bool = False
    """Whether all of the body came, or the client went."""
    status: int = 0
    """Of the answer; 0 where there was none."""
    facts: dict[str, Any] = field(default_factory=dict)
    """More for the line in the log."""

    @classmethod
    def of(cls, scope: Scope) -> "Exchange":
        """That of a scope."""
        exchange: Exchange = scope[_KEY]
        return exchange


class Exchanges:
    """Middleware (ASGI): gives each request its `Exchange`, and logs and counts its answer.

    Args:
        app: what answers.
        metrics: told of every answer.
        paths: that exist; others are counted together.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[_KEY] = Exchange(_id_of(scope))
        start = perf_counter()

        async def counted_receive() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            exchange.is_received |= not message.get("more_body", False)
            return message

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                own = (b"x-request-id", exchange.id.encode())
                message = {**message, "headers": [*message["headers"], own, *_HEADERS]}
            await send(message)

        try:
            await self._app(scope, counted_receive, named_send)
        finally:
            self._tell(scope, exchange, perf_counter() - start)

    def _tell(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(exchange.status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        client = scope["client"][0] if scope.get("client") else None
        facts = {
            "request": exchange.id,
            "client": client,
            "method": scope["method"],
            "path": scope["path"],
            "status": exchange.status,
            "seconds": round(seconds, 4),
            "received": exchange.received,
            **exchange.facts,
        }
        failed = exchange.status in (0, 500)
        _logger.log(logging.ERROR if failed else logging.INFO, "answered", extra=facts)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, level, logger, message, and its `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _NAMED}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _id_of(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _ID.fullmatch(given) else secrets.token_hex(8)
