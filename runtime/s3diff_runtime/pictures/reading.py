"""Opens pictures: what may be read, by which decoder, and in what words it is refused."""

from __future__ import annotations

import importlib
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3diff_runtime.errors import RequestError, TooLarge
from s3diff_runtime.pictures import boxes, jpeg, png, tiff, webp
from s3diff_runtime.pictures.formats import PLUGINS, READ, missing_plugin
from s3diff_runtime.pictures.metadata import exif_of, orientation_of
from s3diff_runtime.pictures.png import Chunk
from s3diff_runtime.remote import RemotePath
from s3diff_runtime.vocabulary import Pixels

if TYPE_CHECKING:  # see tiff.py
    from tifffile import TiffPage

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can unpack to gigabytes, and the result has
16 times the pixels."""
MAX_SIDE = 65_535
"""Pixels of the longest side. A decoder spends memory on every row, however short."""

PictureSource = (
    str
    | os.PathLike[str]
    | RemotePath
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | NDArray[Any]
)
"""What pictures come as: a path, a file in a store, the bytes of a file, an open file, a PIL image, or an
array."""
EXPECTED = (
    "expected a path, the bytes of a file, an open binary file, a PIL image, "
    "or a uint8 array [H, W], [H, W, 3] or [H, W, 4]"
)

_HEAD = 64
_WITHOUT_END = "the end marker of the JPEG is missing"
_MARKS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftypheic", "HEIF"), (4, b"ftypheix", "HEIF"), (4, b"ftyphevc", "HEIF"), (4, b"ftyphevx", "HEIF"),
    (4, b"ftypmif1", "HEIF"), (4, b"ftypmsf1", "HEIF"), (4, b"ftypheim", "HEIF"), (4, b"ftypheis", "HEIF"),
    (0, b"\xff\x0a", "JXL"), (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
)  # fmt: skip
"""Where in a file, what says that one of the plugins reads it."""
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer in the place of the picture: run git lfs pull"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
    (b"%pdf", "a PDF document"),
    (b"8bps", "a Photoshop document"),
    (b"pk\x03\x04", "a ZIP archive"),
)


Decoded = tuple[Image.Image, Pixels | None, list[str]]
"""A decoded picture, its alpha where the picture itself does not hold it, and notes."""


@contextmanager
def every_size_allowed() -> Iterator[None]:
    """Lift Pillow's limit and its warnings in this process: inputs have our limit, and results are larger."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@dataclass
class OpenedPicture:
    """A picture whose header is read."""

    name: str
    size: tuple[int, int]
    """`(width, height)`, before it is turned."""
    orientation: int
    """How it must be turned after decoding, 1 to 8 as in EXIF."""
    maybe_transparent: bool
    """False where the header shows that it cannot be."""
    decode: Callable[[], Decoded]
    exif: Callable[[], Image.Exif]
    """Reads EXIF, or the tags of a TIFF; raises many kinds for damaged ones."""
    texts: list[Chunk] = field(default_factory=list)
    """Text of a PNG."""
    colors: list[Chunk] = field(default_factory=list)
    """What the numbers stand for without an ICC profile, as PNG says it."""
    depth: str = ""
    """How the file packs its channels, in Pillow's words, for example `RGB;16B`."""
    lossless: bool = False
    """Whether it is a WebP without loss."""
    format: str = ""
    """Pillow's name of what it is; empty for pixels that came without a file."""
    notes: list[str] = field(default_factory=list)
    """What opening it has lost."""


@contextmanager
def opened(
    source: PictureSource, max_pixels: int | None = MAX_PIXELS, pixels: bool = True
) -> Iterator[OpenedPicture]:
    """Open a picture; all ways in which decoders fail, here or in the block, become a `RequestError`.

    Args:
        source: see `PictureSource`.
        max_pixels: larger pictures are refused, and those with a side over `MAX_SIDE`; None takes every size.
        pixels: whether the picture will be decoded, or its header alone is of interest.
    """
    name = _name_of(source)
    try:
        with _stream(source) as stream:
            if isinstance(stream, Image.Image):
                # Where Pillow has not decoded a TIFF yet, it must not be the one to do so.
                file = getattr(stream, "fp", None) if stream.format == "TIFF" else None
                picture = (
                    _from_tiff(name, file, max_pixels) if file else _from_pillow(name, stream, max_pixels)
                )
            else:
                picture = _from_file(name, stream, max_pixels, pixels)
            yield picture
    except RequestError:
        raise
    except FileNotFoundError as error:
        raise RequestError(f"{name} does not exist") from error
    except MemoryError as error:
        raise RequestError(f"{name} needs more memory than there is") from error
    except Image.DecompressionBombError as error:
        raise RequestError(
            f"{name} has more pixels than Pillow's own limit of {Image.MAX_IMAGE_PIXELS} allows; "
            "raise PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or reason_of(error)}") from error
    except Exception as error:  # decoders raise many kinds for damaged files
        raise RequestError(f"{name} cannot be read as a picture: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """An error's words, in one line, where they were meant for people; else its kind."""
    words = " ".join(str(error).split())
    meant = words and isinstance(error, OSError | ValueError | SyntaxError)
    return words if meant else f"it is damaged ({type(error).__name__})"


# --- sources --------------------------------------------------------------------------------------


def _name_of(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    if isinstance(source, RemotePath):
        return str(source)
    if isinstance(source, np.ndarray):
        return "the array"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name and hasattr(source, "read") else "the image"


@contextmanager
def _stream(source: object) -> Iterator[BinaryIO | Image.Image]:
    if isinstance(source, Image.Image):
        yield source
    elif isinstance(source, np.ndarray):
        yield _from_array(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        yield BytesIO(source)
    elif isinstance(source, RemotePath):
        yield BytesIO(source.read())
    elif isinstance(source, str | os.PathLike):
        with _regular_file(Path(source)) as file:
            yield file
    elif callable(getattr(source, "read", None)):
        yield _in_memory(source)
    else:
        raise RequestError(f"the image is {_kind_of(source)}; {EXPECTED}")


def _kind_of(source: object) -> str:
    kind = type(source)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    shape = getattr(source, "shape", None)
    size = f" of {list(shape)}" if isinstance(shape, tuple) else ""
    return "None" if source is None else f"of type {name}{size}"


@contextmanager
def _regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open without waiting: a pipe would, for whoever writes to it."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RequestError(f"{path} is not a regular file, but a pipe, a socket or a device")
        yield file


def _in_memory(file: Any) -> BytesIO:  # noqa: ANN401 - whatever has `read`
    """The whole of an open file: not all can seek, as decoders must."""
    if callable(getattr(file, "seekable", None)) and file.seekable():
        file.seek(0)
    content = file.read()
    if not isinstance(content, bytes | bytearray | memoryview):
        raise RequestError(f"what the file gives is {_kind_of(content)}; open it in binary mode, as 'rb'")
    return BytesIO(content)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (3, 4))
    ):
        raise RequestError(
            f"the array is {array.dtype} {list(array.shape)}; expected uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    if not array.size:
        raise RequestError(f"the array is empty ({array.shape[1]}x{array.shape[0]} pixels)")
    return Image.fromarray(array)


# --- containers -----------------------------------------------------------------------------------


def _from_file(name: str, file: BinaryIO, max_pixels: int | None, pixels: bool) -> OpenedPicture:
    """Find out what a file is, and leave aside what of it would stop the decoder."""
    head = file.read(_HEAD)
    file.seek(0)
    if tiff.is_tiff(head):
        return _from_tiff(name, file, max_pixels)
    notes, texts, colors = list[str](), list[Chunk](), list[Chunk]()
    if head.startswith(png.SIGNATURE):
        parts = png.take_apart(file, pixels)
        if parts.frames > 1:
            raise RequestError(f"{name} is animated ({parts.frames} pictures); expected a single one")
        file, notes, texts, colors = parts.sound, parts.notes, parts.texts, parts.colors
    elif head.startswith(jpeg.START):
        file, notes = jpeg.readable(file)
    elif webp.is_webp(head):
        file, notes = webp.readable(file, name)
    elif boxes.is_boxed(head):
        notes, colors = boxes.said_in_boxes(name, file)
    file.seek(0)
    picture = _from_pillow(name, _identified(name, file, head), max_pixels, file)
    picture.notes, picture.texts, picture.colors = notes, texts, colors
    return picture


def _identified(name: str, file: BinaryIO, head: bytes) -> Image.Image:
    """Open with the decoder that the content asks for."""
    plugin = next((plugin for at, mark, plugin in _MARKS if head[at:].startswith(mark)), None)
    if plugin:
        if lacking := missing_plugin(plugin):
            raise RequestError(f"{name} is a {plugin} picture, which {lacking}")
        module = importlib.import_module(PLUGINS[plugin])
        getattr(module, "register_heif_opener", lambda: None)()
    formats = [plugin] if plugin else [each for each in READ if each not in PLUGINS]
    try:
        return Image.open(file, formats=formats)
    except Image.UnidentifiedImageError as error:
        start = head.lstrip().lower()
        unknown = f"not a {', '.join(READ)} picture, or is damaged" if head else "empty (0 bytes)"
        what = next((what for mark, what in _STRANGERS if start.startswith(mark)), unknown)
        raise RequestError(f"{name} is {what}") from error


def _from_pillow(
    name: str, image: Image.Image, max_pixels: int | None, file: BinaryIO | None = None
) -> OpenedPicture:
    _require_size(name, image.width, image.height, max_pixels)
    if image.format not in ("MPO", "TIFF") and getattr(image, "is_animated", False):
        raise RequestError(f"{name} is animated or has several pages; expected a single one")

    def decode() -> Decoded:
        try:
            image.load()
        except OSError as error:
            if file is None or "truncated" not in str(error):
                raise
            return _cut(name, image, file), None, [_WITHOUT_END]
        if file is not None and image.format == "JPEG" and jpeg.ends_unwritten(file):
            return _cut(name, image, file), None, [_WITHOUT_END]
        return image, None, []

    return OpenedPicture(
        name,
        image.size,
        orientation_of(image),
        image.has_transparency_data,
        decode,
        lambda: exif_of(image),
        depth=_stored_depth(image),
        lossless=file is not None and image.format == "WEBP" and webp.is_lossless(file),
        format="JPEG" if image.format == "MPO" else image.format or "",
    )


def _cut(name: str, image: Image.Image, file: BinaryIO) -> Image.Image:
    """The picture of a file that stops early, if all of it is there; raises `RequestError` if not."""
    file.seek(0)
    data = file.read()
    there = f"the file ends after {len(data)} bytes"
    if image.format == "PNG":
        there = f"about {png.share_of_pixels(data):.0%} of its pixels are there"
    elif image.format in ("JPEG", "MPO"):
        whole, there = jpeg.without_end(data)
        if whole is not None:
            return whole
    raise RequestError(f"{name} cannot be read: image file is truncated; {there}")


def _from_tiff(name: str, file: BinaryIO, max_pixels: int | None) -> OpenedPicture:
    page = tiff.only_page(file, name)
    _require_size(name, page.imagewidth, page.imagelength, max_pixels)
    if tiff.pillow_is_right(page):
        file.seek(0)
        with suppress(Image.UnidentifiedImageError):
            image = Image.open(file, formats=["TIFF"])
            return replace(
                _from_pillow(name, image, max_pixels),
                decode=lambda: _loaded_tiff(name, image, page),
                exif=lambda: exif_of(image),
            )
    return OpenedPicture(
        name,
        (page.imagewidth, page.imagelength),
        tiff.orientation(page),
        tiff.has_alpha(page),
        lambda: tiff.decode(page, name),
        lambda: tiff.tags(page),
        format="TIFF",
    )


def _loaded_tiff(name: str, image: Image.Image, page: TiffPage) -> Decoded:
    try:
        image.load()
    except OSError:
        tiff.require_whole(page, name)
        raise
    dropped = any(kind == 0 for kind in page.extrasamples)
    return image, None, [tiff.CHANNELS_DROPPED] if dropped else []


def _require_size(name: str, width: int, height: int, max_pixels: int | None) -> None:
    size = f"{width}x{height} pixels"
    if not width or not height:
        raise RequestError(f"{name} is empty ({size})")
    if max_pixels is None:
        return
    if width * height > max_pixels:
        raise TooLarge(
            f"{name} has {size}, more than the limit of {max_pixels} pixels; take it with --max-pixels "
            f"{width * height}, or in Python with open_photograph(…, max_pixels={width * height})"
        )
    if max(width, height) > MAX_SIDE:
        raise TooLarge(f"{name} has {size}, and sides are limited to {MAX_SIDE}; cut it into parts")


def _stored_depth(image: Image.Image) -> str:
    tile = getattr(image, "tile", None)
    arguments = tile[0].args if tile else ""
    return str(arguments if isinstance(arguments, str) else arguments[0]) if arguments else ""
