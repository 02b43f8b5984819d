"""Formats of pictures: what is read, what is written, their limits, and files that are whole or not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal

from PIL import Image

from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.files import replacing
from s3diff_runtime.pictures.metadata import encoder_options
from s3diff_runtime.remote import Place, RemotePath

QUALITY = 95
"""Of JPEG and WebP where none is asked for."""

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
        "jpeg": FileFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"), 65_500, transparency=False),
        "webp": FileFormat("WEBP", (".webp",), 16_383),
        "tiff": FileFormat("TIFF", (".tif", ".tiff", ".btf", ".tf8"), 2**31 - 1),
    }
)
_WRITTEN = {suffix: format for format in FORMATS.values() for suffix in format.suffixes}


READ: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{format.name: format.suffixes for format in FORMATS.values()},
        "BMP": (".bmp",),
        "DIB": (".dib",),
        "GIF": (".gif",),
        "AVIF": (".avif",),
        "HEIF": (".heic", ".heif", ".hif"),
        "JXL": (".jxl",),
    }
)
"""Suffixes by Pillow's names: they tell which files of a folder are pictures, and content what each is."""
PLUGINS: Mapping[str, str] = MappingProxyType({"HEIF": "pillow_heif", "JXL": "pillow_jxl"})
"""Modules that must be there to read some of them."""
_READ_BY_SUFFIX = {suffix: name for name, suffixes in READ.items() for suffix in suffixes}
SUFFIXES = frozenset(_READ_BY_SUFFIX)
"""Of the files that are read, in lower case."""
WRITTEN_SUFFIXES = frozenset(_WRITTEN)
"""Of those that are written."""
_TIFF_BYTES = 2**32 - 2**20
"""Offsets in a TIFF file have 32 bits; a little is left for its tags."""


def missing_plugin(name: str) -> str:
    """What must be installed to read one of `READ`, in words; empty where nothing is missing."""
    there = name not in PLUGINS or importlib.util.find_spec(PLUGINS[name])
    return "" if there else "needs: pip install 's3diff-export[formats]'"


def not_read(path: Place) -> str:
    """Why a file of a folder is not taken for a picture, judging by its name; empty where it is."""
    name = _READ_BY_SUFFIX.get(path.suffix.lower())
    return missing_plugin(name) if name else "not a picture that is read"


def holds_transparency(path: Place) -> bool:
    """Whether the format of `path` holds it."""
    format = _WRITTEN.get(path.suffix.lower())
    return format is None or format.transparency


def require_fit(path: Place, width: int, height: int, transparent: bool) -> None:
    """Raise `RequestError` when the format of `path` cannot hold such a picture.

    Args:
        path: its suffix is the format.
        width, height: in pixels.
        transparent: whether some of it can be seen through.
    """
    format = _WRITTEN.get(path.suffix.lower())
    if format is None:
        raise RequestError(f"{path} names no format; expected a suffix of {', '.join(sorted(_WRITTEN))}")
    if problem := fit_problem(format, width, height, transparent):
        raise RequestError(f"{path}: {problem} (--format)")


def fit_problem(format: FileFormat, width: int, height: int, transparent: bool) -> str:
    """Why a format cannot hold a picture, see `require_fit`; empty where it can."""
    if transparent and not format.transparency:
        return f"{format.name} holds no transparency; choose png, webp or tiff"
    too_large = max(width, height) > format.max_side
    if format.name == "TIFF" and width * height * (4 if transparent else 3) > _TIFF_BYTES:
        too_large = True
    return f"{format.name} cannot hold {width}x{height} pixels; choose png" if too_large else ""


def is_transparent(image: Image.Image) -> bool:
    """Whether an image of mode L, LA, RGB or RGBA can be seen through somewhere."""
    return "A" in image.mode and image.getchannel("A").getextrema() != (255, 255)


def save(image: Image.Image, path: Place, quality: int = QUALITY) -> tuple[str, ...]:
    """Write a picture with the profile and all else that its `info` holds, atomically.

    JPEG is written without chroma subsampling, and without an alpha channel that is opaque throughout. TIFF
    is not compressed: Pillow's compressed writer hides a full disk and stops all other threads.

    Args:
        image: of mode L, LA, RGB or RGBA.
        path: its suffix is the format; missing folders are made. In a store the file is put there at once.
        quality: 1 to 100, for JPEG and WebP with loss.

    Returns:
        A note on each thing in `info` that the format cannot hold.

    Raises:
        RequestError: when the format cannot hold the picture.
        JobError: when the disk or the store refuses, or the encoder fails.
    """
    require_fit(path, image.width, image.height, is_transparent(image))
    if isinstance(path, RemotePath):
        content, notes = encode(image, _WRITTEN[path.suffix.lower()], quality)
        path.write(content)
        return notes
    with replacing(path) as temporary:
        return _write(image, temporary, _WRITTEN[path.suffix.lower()], quality, str(path))


def encode(image: Image.Image, format: FileFormat, quality: int = QUALITY) -> tuple[bytes, tuple[str, ...]]:
    """The file that `save` would write, in memory, and the same notes.

    Raises:
        RequestError: when the format cannot hold the picture.
        JobError: when the encoder fails.
    """
    if problem := fit_problem(format, image.width, image.height, is_transparent(image)):
        raise RequestError(problem)
    file = BytesIO()
    try:
        notes = _write(image, file, format, quality, "the result")
    except OSError as error:
        raise JobError(f"could not encode the result: {error}") from error
    return file.getvalue(), notes


def _write(
    image: Image.Image, target: Path | BinaryIO, format: FileFormat, quality: int, name: str
) -> tuple[str, ...]:
    if "A" in image.mode and not format.transparency:
        image = image.convert(image.mode.removesuffix("A"))
    options, notes = encoder_options(image, format.name)
    if format.name == "JPEG":
        options |= {"quality": quality, "subsampling": "4:4:4"}
    elif format.name == "WEBP" and not options.get("lossless"):
        options["quality"] = quality
    try:
        image.save(target, format=format.name, **options)
    except OSError:
        raise  # of the disk: `replacing` says what to do
    except Exception as error:  # encoders raise many kinds, for example for tags they cannot write
        raise JobError(f"could not encode {name}: {error or type(error).__name__}") from error
    return tuple(notes)
