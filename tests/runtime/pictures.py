"""Small pictures of every kind, for the tests of what happens to them."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms
from skimage import data

HEIGHT, WIDTH = 40, 60
PICTURE = np.ascontiguousarray(data.astronaut()[:HEIGHT, 100 : 100 + WIDTH])
GREY = np.ascontiguousarray(data.camera()[:HEIGHT, 200 : 200 + WIDTH])
ALPHA = np.linspace(0, 255, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def enlarged(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(4, axis=0).repeat(4, axis=1)


def profile_of(space: bytes) -> bytes:
    """A profile that claims a colour space, with a body that nothing here reads."""
    return SRGB[:16] + space + SRGB[20:]


def with_alpha(mode: str) -> Image.Image:
    image = Image.fromarray(GREY if mode == "LA" else PICTURE)
    image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == mode
    return image


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file written by hand, for the kinds that Pillow reads and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    between = b"".join(chunk(*each) for each in extra)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + body + chunk(b"IEND", b"")


def sixteen_bit_png(levels: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """`[H, W, C]` uint16 with 1 to 4 channels."""
    height, width, channels = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, *extra)


def exif_with(orientation: int, maker_note: int = 8) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Artist] = "A. Photographer"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExifImageWidth: WIDTH,
        ExifTags.Base.ExifImageHeight: HEIGHT,
        ExifTags.Base.ISOSpeedRatings: 800,
        ExifTags.Base.MakerNote: bytes(maker_note),
    }
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N"}
    return exif.tobytes()
