"""WebP files: whether they lose nothing, and files that lack their end (container: RFC 9649, section 2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

from s3diff_runtime.errors import RequestError

_PIXELS = (b"VP8 ", b"VP8L", b"ANMF")
_EXTENDED, _FLAGS = b"VP8X", {b"EXIF": 0x08, b"XMP ": 0x04}
_HEADER = 12


def is_webp(head: bytes) -> bool:
    """Whether a file begins like a WebP."""
    return head.startswith(b"RIFF") and head[8:12] == b"WEBP"


def is_lossless(file: BinaryIO) -> bool:
    """Whether the first picture of a WebP is stored without loss."""
    return next((kind == b"VP8L" for kind, _, _ in _chunks(file) if kind in _PIXELS), False)


def readable(file: BinaryIO, name: str) -> tuple[BinaryIO, list[str]]:
    """A WebP file as it is; or, where it was cut behind its pixels, without what was cut, and a note.

    Raises:
        RequestError: for a file that was cut before.
    """
    size = file.seek(0, 2)
    file.seek(4)
    declared = int.from_bytes(file.read(4), "little") + 8
    if size >= declared:
        return file, []
    complete = [chunk for chunk in _chunks(file) if chunk[1] + chunk[2] <= size]
    kinds = [kind for kind, _, _ in complete]
    if not any(kind in _PIXELS for kind in kinds):
        raise RequestError(f"{name} is cut off: about {size / declared:.0%} of it is there")
    lacking = sum(flag for kind, flag in _FLAGS.items() if kind not in kinds)
    body = bytearray(b"WEBP")
    for kind, start, length in complete:
        file.seek(start)
        content = bytearray(file.read(length))
        if kind == _EXTENDED and content:
            content[0] &= ~lacking
        body += kind + struct.pack("<I", length) + content + bytes(length % 2)
    rest = BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)
    return rest, ["the end of the WebP is missing, and what it said"]


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start of the content and length of every chunk; the last may reach beyond the end of the file."""
    at = _HEADER
    file.seek(at)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[4:], "little")
        yield header[:4], at + 8, length
        at += 8 + length + length % 2
        file.seek(at)
