"""Writes pictures: formats, their limits, and files that are whole or not there at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from PIL import Image

from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.files import replacing

QUALITY = 95
"""Of JPEG and WebP where none is asked for."""

_EXIF_IN_JPEG = 65_533
"""Bytes that one JPEG marker holds."""


Format = Literal["png", "jpeg", "webp", "tiff"]
"""What results are written as."""


@dataclass(frozen=True)
class FileFormat:
    """A file format: Pillow's name, suffixes (the usual one first), and pixels of its longest side."""

    name: str
    suffixes: tuple[str, ...]
    max_side: int
    transparency: bool = True


FORMATS: Mapping[Format, FileFormat] = MappingProxyType(
    {
        "png": FileFormat("PNG", (".png",), 2**31 - 1),
        "jpeg": FileFormat("JPEG", (".jpg", ".jpeg"), 65_500, transparency=False),
        "webp": FileFormat("WEBP", (".webp",), 16_383),
        "tiff": FileFormat("TIFF", (".tif", ".tiff"), 2**31 - 1),
    }
)
_BY_SUFFIX = {suffix: format for format in FORMATS.values() for suffix in format.suffixes}
SUFFIXES = frozenset(_BY_SUFFIX)
"""Of the files that are read and written, in lower case."""
_TIFF_BYTES = 2**32 - 2**20
"""Offsets in a TIFF file have 32 bits; a little is left for its tags."""


def require_fit(path: Path, width: int, height: int, transparent: bool) -> None:
    """Raise `RequestError` when the format of `path` cannot hold such a picture.

    Args:
        path: its suffix is the format.
        width, height: in pixels.
        transparent: whether the picture has alpha.
    """
    format = _BY_SUFFIX.get(path.suffix.lower())
    if format is None:
        raise RequestError(f"{path} names no format; expected a suffix of {', '.join(sorted(SUFFIXES))}")
    if transparent and not format.transparency:
        raise RequestError(f"{path}: {format.name} holds no transparency; choose png, webp or tiff")
    too_large = max(width, height) > format.max_side
    if format.name == "TIFF" and width * height * (4 if transparent else 3) > _TIFF_BYTES:
        too_large = True
    if too_large:
        raise RequestError(f"{path}: {format.name} cannot hold {width}x{height} pixels; choose png")


def save(image: Image.Image, path: Path, quality: int = QUALITY) -> None:
    """Write a picture with the profile and EXIF in its `info`, atomically.

    JPEG is written without chroma subsampling. TIFF is not compressed: Pillow's compressed writer hides a
    full disk and stops all other threads. EXIF that is too long for a JPEG is left out.

    Args:
        image: of mode L, LA, RGB or RGBA.
        path: its suffix is the format; missing folders are made.
        quality: 1 to 100, for JPEG and WebP.

    Raises:
        RequestError: when the format cannot hold the picture.
        JobError: when the disk refuses, or the encoder fails.
    """
    require_fit(path, image.width, image.height, "A" in image.mode)
    format = _BY_SUFFIX[path.suffix.lower()].name
    exif = image.info.get("exif")
    options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
    if exif and not (format == "JPEG" and len(exif) > _EXIF_IN_JPEG):
        options["exif"] = exif
    if format == "JPEG":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    elif format == "WEBP":
        options["quality"] = quality
    with replacing(path) as temporary:
        try:
            image.save(temporary, format=format, **options)
        except OSError:
            raise  # of the disk: `replacing` says what to do
        except Exception as error:  # encoders raise many kinds, for example for tags they cannot write
            raise JobError(f"could not encode {path}: {error}") from error
