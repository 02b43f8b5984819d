"""JPEG files: what stands beside the pixels, and files that lack their end."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image

START, _END = b"\xff\xd8", b"\xff\xd9"
_FILLERS = tuple(bytes((step * number + 181) % 255 for number in range(4096)) for step in (37, 91))
"""Anything, but no 0xFF, which would begin a marker, and no 0 first, which decoders make up themselves."""
_UNWRITTEN = bytes(64)
_PHOTOSHOP, _IPTC_RESOURCE = b"Photoshop 3.0\0", 0x0404
_KNOWN = (b"JFIF", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"Adobe", _PHOTOSHOP)
LONGEST_MARKER = 65_533
"""Bytes that one marker holds."""


def iptc_of(resources: bytes) -> bytes | None:
    """The IPTC block among Photoshop's image resources (as in JPEG and TIFF); None where there is none."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and len(resources) >= at + 12:
        (number,) = struct.unpack_from(">H", resources, at + 4)
        at += 6 + (resources[at + 6] + 2) // 2 * 2  # a name, padded to even length with its own
        if len(resources) < at + 4:
            break
        (length,) = struct.unpack_from(">I", resources, at)
        if number == _IPTC_RESOURCE:
            return resources[at + 4 : at + 4 + length] or None
        at += 4 + length + length % 2
    return None


def iptc_marker(iptc: bytes) -> bytes | None:
    """The marker that holds an IPTC block in a JPEG; None for one that is too long."""
    content = _PHOTOSHOP + struct.pack(">4sHHI", b"8BIM", _IPTC_RESOURCE, 0, len(iptc)) + iptc
    content += bytes(len(iptc) % 2)
    if len(content) > LONGEST_MARKER:
        return None
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def said_in_markers(markers: list[tuple[str, bytes]]) -> tuple[bytes | None, bytes | None, list[str]]:
    """Comment and IPTC block of a JPEG, and a note on the markers of which a result keeps nothing.

    Args:
        markers: names and contents, as in Pillow's `applist`.
    """
    comments = [content for name, content in markers if name == "COM" and content]
    resources = b"".join(
        content[len(_PHOTOSHOP) :] for name, content in markers if content.startswith(_PHOTOSHOP)
    )
    iptc = iptc_of(resources)
    unknown = [
        f"{name} {_label(content)}".strip()
        for name, content in markers
        if name != "COM" and not content.startswith(_KNOWN)
    ]
    if resources and iptc is None:
        unknown.append("Photoshop resources")
    notes = [f"JPEG {', '.join(dict.fromkeys(unknown))} not true of a result, dropped"] if unknown else []
    return b"\n".join(comments) or None, iptc, notes


def readable(file: BinaryIO) -> tuple[BinaryIO, list[str]]:
    """A JPEG file as it is, or without the markers that Pillow stumbles over; with a note then."""
    try:
        Image.open(file, formats=["JPEG"])
        return file, []
    except Exception:  # Pillow's parser raises many kinds for damaged markers
        file.seek(0)
        data = file.read()
        segments = list(_segments(data))
        first = next((at for marker, at, _ in segments if marker == 0xDA), len(data))
        beside = [(at, end) for marker, at, end in segments if at < first and _beside(marker)]
        ends = [0, *(end for _, end in beside)]
        rest = [data[start:at] for start, (at, _) in zip(ends, beside, strict=False)]
        pixels = b"".join([*rest, data[ends[-1] :]])[len(START) :]
        sound = [data[at:end] for at, end in beside if _opens(START + data[at:end] + pixels)]
        if len(sound) == len(beside) or not _opens(START + pixels):
            file.seek(0)
            return file, []
        return BytesIO(START + b"".join(sound) + pixels), ["JPEG markers damaged, dropped"]
    finally:
        file.seek(0)


def ends_unwritten(file: BinaryIO) -> bool:
    """Whether a file ends in zeros that do not follow an end marker, as when its disk or download failed."""
    file.seek(0, 2)
    file.seek(max(0, file.tell() - len(_UNWRITTEN)))
    if file.read() != _UNWRITTEN:
        return False
    file.seek(0)
    return not file.read().rstrip(b"\0").endswith(_END)


def without_end(data: bytes) -> tuple[Image.Image | None, str]:
    """Decode a JPEG that stops before its end marker.

    With the marker put there, a decoder makes up what is missing; so the picture is whole if it comes out the
    same whatever else stands before the marker.

    Returns:
        The decoded picture and an empty text, or None and how much is there.
    """
    content = data.rstrip(b"\0") if data.endswith(_UNWRITTEN) else data
    content = content[:-1] if content.endswith(b"\xff") else content
    picture = _loaded(content + _END)
    pixels = np.asarray(picture)
    for filler in _FILLERS:
        other = np.asarray(_loaded(content + filler + _END))
        different = np.flatnonzero((pixels != other).reshape(len(pixels), -1).any(axis=1))
        if len(different):
            return None, f"about {different[0]} of its {len(pixels)} rows are there"
    if not all(_scans_complete(content)):
        return None, "its last scans, which hold the details, are missing"
    return picture, ""


def _loaded(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data), formats=["JPEG"])
    image.load()
    return image


def _label(content: bytes) -> str:
    label = content[:16].partition(b"\0")[0]
    return f"({label.decode('ascii')})" if label.isalnum() else ""


def _scans_complete(data: bytes) -> Iterator[bool]:
    """Whether each component of a progressive JPEG is there to its last bit; nothing for other JPEGs."""
    left: dict[int, dict[int, int]] = {}  # for each component and coefficient, the bits that are missing
    for marker, at, end in _segments(data):
        content = data[at + 4 : end]
        if marker == 0xC2 and len(content) > 6:
            left = {component: dict.fromkeys(range(64), 1) for component in content[6::3]}
        elif marker == 0xDA and left and content:
            count = content[0]
            first, last, bits = content[1 + 2 * count], content[2 + 2 * count], content[3 + 2 * count] & 15
            for component in content[1 : 1 + 2 * count : 2]:
                left.get(component, {}).update(dict.fromkeys(range(first, last + 1), bits))
    for missing in left.values():
        yield not any(missing.values())


def _beside(marker: int) -> bool:
    """Whether a marker may be left out: APP0 to APP15 (but Adobe says how colours are coded), and COM."""
    return (0xE0 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE


def _opens(data: bytes) -> bool:
    try:
        Image.open(BytesIO(data), formats=["JPEG"])
    except Exception:  # as above
        return False
    return True


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Markers, where they begin and where they end; compressed pixels between them are passed over."""
    at = data.find(b"\xff", 2)
    while 0 <= at < len(data) - 4:
        marker = data[at + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:
            at = data.find(b"\xff", at + (1 if marker == 0xFF else 2))
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at, at + 2 + length
        at = data.find(b"\xff", at + 2 + length)
