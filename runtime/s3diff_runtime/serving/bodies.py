"""What clients send, read with limits, as it is or in a form; and what is sent to those who are refused."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from s3diff_runtime.options import LONGEST_QUOTE
from s3diff_runtime.serving.exchange import Exchange

_DRAIN_SECONDS = 10.0
"""For how long what a refused client still sends is read and dropped: many listen only after sending."""
_DRAIN_BYTES = 256 * 2**20
_FORM = "multipart/form-data"


class Refused(HTTPException):
    """An answer other than 200: its status, what the client is told, and headers."""


class Refusal(JSONResponse):
    """Tells at once why, and only then reads what the client has not finished sending, without keeping it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await _drain(Exchange.of(scope), receive)
        await send({"type": "http.response.body"})


class Sending(StreamingResponse):
    """An answer in pieces, for a client that reads it within some seconds; else the connection is cut."""

    def __init__(
        self, pieces: AsyncIterator[bytes], seconds: float, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._seconds = seconds

    async def stream_response(self, send: Send) -> None:
        """Send; the server closes a connection whose answer is not complete."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                await super().stream_response(send)


async def _drain(exchange: Exchange, receive: Receive) -> None:
    most = exchange.received + _DRAIN_BYTES
    while not exchange.is_received and exchange.received < most:
        await receive()


class Mailroom:
    """Reads bodies, each within limits of bytes and time, and all of them within one limit of bytes.

    Args:
        most: bytes of one body.
        most_together: bytes of all that are not whole yet.
        seconds: until a body must be whole.
    """

    def __init__(self, most: int, most_together: int, seconds: float) -> None:
        self.most, self._most_together, self._seconds = most, most_together, seconds
        self._held = 0

    async def picture(self, request: Request) -> bytes:
        """The picture that a client sends: the body, or the one file of a form (`multipart/form-data`).

        Raises:
            Refused: 413 for too many bytes, 408 where they take too long, 503 where too many are on their
                way, 400 for an empty or encoded body, or a form without a file or with anything else.
            starlette.requests.ClientDisconnect: when the client goes before it has sent everything.
        """
        kind, parameters = parse_options_header(request.headers.get("content-type"))
        if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
            raise Refused(400, f"the body is encoded ({encoding[:20]}): send the file as it is")
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._whole(request)
        except TimeoutError:
            raise Refused(408, f"the picture took longer than {self._seconds:g} s to arrive") from None
        if kind == _FORM.encode():
            body = await asyncio.to_thread(_only_file, body, parameters.get(b"boundary", b""))
        if not body:
            raise Refused(400, "no picture came: send the bytes of its file as the body of the request")
        return body

    async def _whole(self, request: Request) -> bytes:
        declared = request.headers.get("content-length", "0")
        if int(declared) > self.most:  # the server has refused what is no number
            raise self._too_large()
        parts: list[bytes] = []
        length = 0
        try:
            async for part in request.stream():
                length += len(part)
                self._held += len(part)
                if length > self.most:
                    raise self._too_large()
                if self._held > self._most_together:
                    raise Refused(503, "too many pictures are on their way", {"Retry-After": "1"})
                parts.append(part)
            return b"".join(parts)
        finally:
            self._held -= length

    def _too_large(self) -> Refused:
        return Refused(413, f"the file is larger than the {self.most} bytes that this service takes")


def _only_file(body: bytes, boundary: bytes) -> bytes:
    """The part of a form that has the name of a file; empty where there is none."""
    files, ends = list[File](), list[bool]()

    def refuse_field(field: Field) -> None:
        name = (field.field_name or b"").decode(errors="replace")[:LONGEST_QUOTE]
        raise Refused(400, f"the form has the field {name!r}: parameters go into the query (?noise=0.3)")

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body)}  # nothing goes to the disk
    try:
        parser = FormParser(
            _FORM, refuse_field, files.append, lambda: ends.append(True), boundary, config=in_memory
        )
        parser.write(body)
        if not ends:
            raise FormParserError("its last boundary is missing")
    except FormParserError as error:
        raise Refused(
            400, "the form cannot be read; send one as curl -F picture=@photo.jpg does, or the file alone"
        ) from error
    if len(files) > 1:
        raise Refused(
            400, f"the form has {len(files)} files, expected one: send each in a request of its own"
        )
    if not files:
        return b""
    files[0].file_object.seek(0)
    return files[0].file_object.read()


async def until_gone(request: Request) -> bool:
    """Return True when the client of a request, whose body was read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return True
