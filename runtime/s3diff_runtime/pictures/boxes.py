"""Files of boxes (AVIF, HEIF, JPEG XL; ISO/IEC 14496-12): whether they are whole, and what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.png import Chunk

_DEPTHS = re.compile(rb"pixi\0{4}[\1-\4](.)", re.DOTALL)
_NCLX = re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL)
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 2, 5, 6), (1, 2, 6, 13)
"""What stands for sRGB in ITU-T H.273, or is taken for it everywhere."""


def is_boxed(head: bytes) -> bool:
    """Whether a file begins with a box."""
    return head[4:8] in (b"ftyp", b"JXL ")


def said_in_boxes(name: str, file: BinaryIO) -> tuple[list[str], list[Chunk]]:
    """Notes on what no decoder here gives out; and what the numbers stand for, where they are no sRGB.

    Returns:
        The latter as PNG says it.

    Raises:
        RequestError: for a file whose boxes reach beyond its end.
    """
    size = file.seek(0, 2)
    ends = dict(_boxes(file))
    end = max(ends.values(), default=0)
    if end > size:
        raise RequestError(f"{name} is cut off: at most {size / end:.0%} of it is there")
    notes = ["XMP of a JPEG XL, dropped"] if b"JXL " in ends and {b"xml ", b"brob"} & set(ends) else []
    file.seek(0)
    properties = file.read(ends.get(b"meta", 0))
    if (found := _DEPTHS.search(properties)) and found[1][0] > 8:
        notes.append(f"{found[1][0]} bits per channel reduced to 8")
    if found := _NCLX.search(properties):
        primaries, transfer = found[1][0], found[2][0]
        if primaries not in _SRGB_PRIMARIES or transfer not in _SRGB_TRANSFERS:
            return notes, [Chunk(b"cICP", bytes([primaries, transfer, 0, 1]))]
    return notes, []


def _boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and end of each box; the last may reach beyond the end of the file."""
    file.seek(0)
    end = 0
    while len(header := file.read(16)) >= 8:
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0: to the end of the file
            return
        end += length
        yield header[4:8], end
        file.seek(end)
