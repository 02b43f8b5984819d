"""PNG files taken apart: a decoder gets what is sound, and nothing else that a file says is lost unnoticed.

Pillow refuses a whole picture for an odd or large ancillary chunk. Those are dropped here, with a note.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
COLOR_CHUNKS = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
"""What the numbers of a picture without an ICC profile stand for, the most telling first."""
XMP_KEYWORD, COMMENT_KEYWORD = b"XML:com.adobe.xmp", b"Comment"

_MOST_BYTES = 2**20
"""Of an ancillary chunk, unpacked: what Pillow and others take of a file that they read."""
_MOST_TEXT = 16 * 2**20
_DECODED = (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"pHYs")
"""Chunks beside the pixels that the decoder is given."""
_LENGTHS = {b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"acTL": 8}
_TRANSPARENT_LENGTHS = {0: (2,), 2: (6,), 3: range(1, 257)}
_EXIF_KEYWORD = b"Raw profile type exif"
_OLD_PROFILES = (_EXIF_KEYWORD, b"Raw profile type APP1", b"Raw profile type xmp")
"""Keywords of EXIF and XMP as ImageMagick wrote them: with the old size and orientation."""


@dataclass(frozen=True)
class Chunk:
    """A chunk without length and checksum."""

    kind: bytes
    content: bytes

    @property
    def keyword(self) -> bytes:
        """Of a text chunk."""
        return self.content.partition(b"\0")[0]

    @property
    def encoded(self) -> bytes:
        """As it stands in a file."""
        checksum = zlib.crc32(self.kind + self.content)
        return struct.pack(">I", len(self.content)) + self.kind + self.content + struct.pack(">I", checksum)


@dataclass
class PngFile:
    """What was found in a PNG file."""

    sound: BytesIO = field(default_factory=BytesIO)
    """A PNG file of the sound chunks that matter for decoding."""
    texts: list[Chunk] = field(default_factory=list)
    """Text that a result inherits; neither XMP nor EXIF."""
    colors: list[Chunk] = field(default_factory=list)
    """Those of `COLOR_CHUNKS` that are there."""
    frames: int = 1
    notes: list[str] = field(default_factory=list)


def take_apart(file: BinaryIO, pixels: bool = True) -> PngFile:
    """Read a PNG file from its signature on.

    Args:
        file: it must be able to seek.
        pixels: whether the compressed pixels are read too; without them `sound` can be opened, not decoded.
    """
    found = PngFile()
    before, compressed = [file.read(len(SIGNATURE))], list[bytes]()
    dropped: dict[str, list[str]] = {}
    color_type, text_bytes, in_pixels = -1, 0, False
    for kind, length in _headers(file):
        ancillary = bool(kind[0] & 0x20)
        if kind == b"IDAT" and not pixels:
            file.seek(length + 4, 1)
            in_pixels = True
            continue
        if ancillary and length > _MOST_BYTES:
            file.seek(length + 4, 1)
            dropped.setdefault("too large", []).append(kind.decode("latin-1"))
            continue
        chunk, checksum = Chunk(kind, file.read(length)), file.read(4)
        if not ancillary:
            whole = len(chunk.content) == length and len(checksum) == 4
            # What is left of a cut chunk may still be all that matters; the decoder finds out.
            encoded = struct.pack(">I", length) + kind + chunk.content + checksum
            if kind != b"IEND":
                (compressed if kind == b"IDAT" else before).append(encoded if whole else chunk.encoded)
            color_type = chunk.content[9] if kind == b"IHDR" and length >= 10 else color_type
            in_pixels |= kind == b"IDAT"
            if kind == b"IEND":
                break
            continue
        problem = "damaged" if chunk.encoded[-4:] != checksum else _problem(chunk, color_type)
        if not problem and kind in TEXT_CHUNKS:
            text_bytes += length
            problem = "too large" if text_bytes > _MOST_TEXT else ""
        if problem:
            dropped.setdefault(problem, []).append(_named(chunk))
        elif kind == b"acTL":
            found.frames = found.frames if in_pixels else struct.unpack(">I", chunk.content[:4])[0]
        elif kind in _DECODED or chunk.keyword in (XMP_KEYWORD, _EXIF_KEYWORD):
            before.append(chunk.encoded)  # wherever it stood: before the pixels, it is found without them
        elif kind in TEXT_CHUNKS and chunk.keyword not in _OLD_PROFILES:
            found.texts.append(chunk)
        elif kind in COLOR_CHUNKS:
            found.colors.append(chunk)
        elif kind not in (b"fcTL", b"fdAT"):
            dropped.setdefault("not true of a result", []).append(_named(chunk))
    end = [] if pixels else [Chunk(b"IDAT", b"").encoded]
    found.sound = BytesIO(b"".join([*before, *compressed, *end, Chunk(b"IEND", b"").encoded]))
    found.notes += [f"PNG {', '.join(dict.fromkeys(each))} {why}, dropped" for why, each in dropped.items()]
    return found


def text_of(chunk: Chunk) -> str:
    """What a sound text chunk says."""
    rest = chunk.content.partition(b"\0")[2]
    if chunk.kind == b"tEXt":
        return rest.decode("latin-1")
    if chunk.kind == b"zTXt":
        return _inflated(rest[1:]).decode("latin-1")
    content = rest[2:].split(b"\0", 2)[2]
    return (_inflated(content) if rest[0] else content).decode("utf-8")


def share_of_pixels(sound: bytes) -> float:
    """How much of its pixels a PNG file holds, from 0 to 1, judging by what unpacks."""
    file = BytesIO(sound)
    file.seek(len(SIGNATURE))
    inflate, unpacked, expected = zlib.decompressobj(), 0, 1
    for kind, length in _headers(file):
        content = file.read(length)
        file.seek(4, 1)
        if kind == b"IHDR":
            width, height, depth, color_type = struct.unpack(">IIBB", content[:10])
            bits = width * depth * {2: 3, 4: 2, 6: 4}.get(color_type, 1)
            expected = max(1, height * (1 + (bits + 7) // 8))
        elif kind == b"IDAT":
            try:
                while content and unpacked < expected:
                    unpacked += len(inflate.decompress(content, _MOST_BYTES))
                    content = inflate.unconsumed_tail
            except zlib.error:
                break
    return min(1.0, unpacked / expected)


def _headers(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of the chunks; whoever takes them moves the file on."""
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if length > 2**31 - 1:
            return
        yield kind, length


def _named(chunk: Chunk) -> str:
    kind = chunk.kind.decode("latin-1")
    return f"{kind} ({chunk.keyword[:79].decode('latin-1')})" if chunk.kind in TEXT_CHUNKS else kind


def _problem(chunk: Chunk, color_type: int) -> str:
    """What is wrong with an ancillary chunk whose checksum is right; empty where nothing is."""
    kind, content = chunk.kind, chunk.content
    if len(content) != _LENGTHS.get(kind, len(content)):
        return "damaged"
    if kind == b"tRNS" and len(content) not in _TRANSPARENT_LENGTHS.get(color_type, ()):
        return "damaged"
    try:
        if kind == b"iCCP":
            method, packed = content.partition(b"\0")[2][:1], content.partition(b"\0")[2][1:]
            if method != b"\0":
                return "damaged"
            _inflated(packed)
        elif kind in TEXT_CHUNKS:
            if not 1 <= len(chunk.keyword) <= 79 or b"\0" not in content:
                return "damaged"
            text_of(chunk)
    except OverflowError:
        return "too large"
    except (zlib.error, ValueError, IndexError):
        return "damaged"
    return ""


def _inflated(packed: bytes) -> bytes:
    """Raises OverflowError for what unpacks to more than Pillow takes."""
    inflate = zlib.decompressobj()
    content = inflate.decompress(packed, _MOST_BYTES)
    if inflate.unconsumed_tail:
        raise OverflowError
    if not inflate.eof:
        raise ValueError
    return content
