"""TIFF files: which layouts Pillow reads rightly, and the others, read by tifffile.

Pillow takes planes of 16 bits for planes of 8, drops or shifts channels of others, and refuses the rest. What
it reads rightly is left to it; `tests/runtime/test_tiff.py` holds the two against each other.
"""

from __future__ import annotations

import logging
import math
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import Pixels

if TYPE_CHECKING:  # it takes a tenth of a second that most runs need not spend
    from tifffile import TiffPage

MOST_DIRECTORIES = 100
"""Pages and thumbnails that are looked at; a file of more is refused."""
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_SAMPLES = 16
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)
_PREDICTED = (5, *_DEFLATE, 50000)  # LZW, Deflate, Zstandard: where libtiff knows predictors
_OF_PILLOW = (1, 2, 3, 4, 6, 7, 32773, 34925, *_PREDICTED)
"""Compressions that Pillow's wheels have: fax, JPEG, PackBits and LZMA besides."""
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _CIELAB: 3, _ICCLAB: 3}
_MODES = {_RGB: "RGB", _PALETTE: "RGB", _CMYK: "CMYK", _CIELAB: "LAB", _ICCLAB: "LAB"}
_UNSIGNED, _FLOAT = 1, 3  # of SampleFormat
_ASSOCIATED, _UNASSOCIATED = 1, 2  # of ExtraSamples
_REDUCED_OR_MASK = 1 | 4  # of NewSubfileType
_CHUNKY = 1
_SUBSAMPLING, _DNG_VERSION, _ORIENTATION = 530, 50706, 274  # tags
CHANNELS_DROPPED = "channels beside colour and alpha, dropped"


def is_tiff(head: bytes) -> bool:
    """Whether a file begins like a TIFF or BigTIFF."""
    return head.startswith(_MAGIC)


def only_page(file: BinaryIO, name: str) -> TiffPage:
    """The one picture of a file, thumbnails and masks aside.

    Raises:
        RequestError: for several pages, camera raw, volumes, and pictures with an absurd number of channels.
    """
    from tifffile import TiffFile, TiffPage

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it tells of every odd tag
    file.seek(0)
    try:
        pages = TiffFile(file).pages
        first = pages[0]
    except Exception as error:  # tifffile raises many kinds for damaged files
        raise RequestError(f"{name} is cut off or damaged: its directory cannot be read") from error
    if not isinstance(first, TiffPage):
        raise RequestError(f"{name} holds no picture")
    if _DNG_VERSION in first.tags:
        raise RequestError(f"{name} is camera raw (DNG); develop it, and save it as TIFF, PNG or JPEG")
    if first.imagedepth > 1 or first.samplesperpixel > _MOST_SAMPLES:
        raise RequestError(
            f"{name} holds {contents(first)}; expected one picture of up to 4 colours and alpha"
        )
    for number in range(1, MOST_DIRECTORIES + 1):
        try:
            page = pages[number]
        except IndexError:
            return first
        if not int(getattr(page, "subfiletype", 0) or 0) & _REDUCED_OR_MASK:
            raise RequestError(f"{name} is animated or has several pages; expected a single one")
    raise RequestError(f"{name} has more than {MOST_DIRECTORIES} pages; expected a single picture")


def pillow_is_right(page: TiffPage) -> bool:
    """Whether Pillow, if it opens the file at all, decodes it rightly."""
    deep = not isinstance(page.bitspersample, int) or page.bitspersample > 16
    if page.sampleformat != _UNSIGNED or deep or page.compression not in _OF_PILLOW:
        return False
    if page.predictor != 1 and page.compression not in (_UNCOMPRESSED, *_PREDICTED):
        return False
    if page.photometric == _YCBCR and page.compression == _UNCOMPRESSED:
        return bool(page.tags.valueof(_SUBSAMPLING, (2, 2)) == (1, 1))
    if page.samplesperpixel > 1 and page.planarconfig != _CHUNKY:
        plain = page.photometric == _RGB and page.samplesperpixel == 3
        return plain and (
            page.bitspersample == 8 or (page.bitspersample == 16 and page.compression != _UNCOMPRESSED)
        )
    return page.photometric in (_BLACK_IS_ZERO, _RGB, _PALETTE) or not any(page.extrasamples)


def orientation(page: TiffPage) -> int:
    """How the picture must be turned, 1 to 8 as in EXIF."""
    found = page.tags.valueof(_ORIENTATION, 1)
    return int(found) if found in range(1, 9) else 1


def has_alpha(page: TiffPage) -> bool:
    """Whether a channel is transparency."""
    extra = page.samplesperpixel - _CHANNELS.get(page.photometric, page.samplesperpixel)
    return extra > 0 and (not page.extrasamples or page.extrasamples[0] in (_ASSOCIATED, _UNASSOCIATED))


def tags(page: TiffPage) -> Image.Exif:
    """All tags, EXIF and GPS among them, as Pillow gives those of its own TIFF files."""
    exif, file = Image.Exif(), page.parent.filehandle
    exif.bigtiff, exif.endian = page.parent.is_bigtiff, page.parent.byteorder
    exif.load_from_fp(cast(BinaryIO, file), page.offset)
    return exif


def contents(page: TiffPage) -> str:
    """What a page holds, for the user."""
    kind = getattr(page.photometric, "name", page.photometric)
    format = {1: "", 2: "signed ", 3: "floating-point "}.get(page.sampleformat, "odd ")
    bits = page.bitspersample
    size = f"{page.imagedepth} layers of " if page.imagedepth > 1 else ""
    return f"{size}{page.samplesperpixel} channels ({kind}) of {bits} {format}bits"


def require_whole(page: TiffPage, name: str) -> None:
    """Raise `RequestError` where pixels lie beyond the end of the file."""
    end = page.parent.filehandle.size
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    there = sum(max(0, min(count, end - offset)) for offset, count in segments)
    total = sum(count for _, count in segments)
    if there < total:
        raise RequestError(f"{name} is cut off: about {100 * there // total} % of its pixels are there")


def decode(page: TiffPage, name: str) -> tuple[Image.Image, Pixels | None, list[str]]:
    """Decode what Pillow does not.

    Returns:
        An image of mode L, RGB, CMYK or LAB; its alpha, uint8 `[H, W]`, if it has one; and notes.

    Raises:
        RequestError: for a cut file, a compression that needs the extra `formats`, and numbers or colours
            whose meaning is not plain.
    """
    channels = _CHANNELS.get(page.photometric, 0)
    extra = page.samplesperpixel - channels
    even = isinstance(page.bitspersample, int) and page.dtype is not None
    if not channels or extra < 0 or not even or (page.bitspersample == 1 and page.samplesperpixel > 1):
        raise RequestError(
            f"{name} holds {contents(page)}; expected grey, palette, RGB, CMYK or CIELAB: convert it to RGB"
        )
    require_whole(page, name)
    _require_bounded(page, name)
    levels = _samples(page, name)
    notes, alpha = list[str](), None
    if has_alpha(page):
        alpha, extra = levels[..., channels], extra - 1
    if extra:
        notes.append(CHANNELS_DROPPED)
    if page.photometric == _PALETTE:
        table = np.asarray(page.colormap)
        pixels = (table.T >> 8).astype(np.uint8)[levels[..., 0]]
    else:
        pixels = _colors(levels[..., :channels], alpha, page, name)
    if page.bitspersample != 8:
        notes.append(f"{page.bitspersample} bits per channel reduced to 8")
    alpha = None if alpha is None else _eight_bits(alpha, page, name)
    height, width = pixels.shape[:2]
    image = Image.frombytes(_MODES.get(page.photometric, "L"), (width, height), pixels.tobytes())
    if page.iccprofile:
        image.info["icc_profile"] = page.iccprofile
    return image, alpha, notes


def _colors(levels: NDArray[Any], alpha: NDArray[Any] | None, page: TiffPage, name: str) -> Pixels:
    """The channels of colour `[H, W, channels]` as Pillow has them."""
    if alpha is not None and page.extrasamples[:1] == (_ASSOCIATED,):
        levels = _unassociated(levels, alpha, page)
    pixels = _eight_bits(levels, page, name)
    if page.photometric == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    if page.photometric == _CIELAB:  # a* and b* are signed there, and begin at 128 in Pillow
        pixels = pixels ^ np.array([0, 128, 128], np.uint8)
    return pixels


def _samples(page: TiffPage, name: str) -> NDArray[Any]:
    """`[H, W, samples]` in the type of the file."""
    try:
        stored = page.asarray(maxworkers=1)
    except (ValueError, NotImplementedError, ImportError) as error:
        if "imagecodecs" not in str(error):
            raise
        packing = getattr(page.compression, "name", page.compression)
        raise RequestError(
            f"{name} holds {contents(page)}, packed as {packing}, which needs: "
            "pip install 's3diff-export[formats]'"
        ) from error
    if page.samplesperpixel > 1 and page.planarconfig != _CHUNKY:
        stored = np.moveaxis(stored, 0, -1)
    return stored.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)


def _require_bounded(page: TiffPage, name: str) -> None:
    """Refuse tiles far larger than their picture, and segments that unpack to more than a tile."""
    pixels = page.imagelength * page.imagewidth
    tile = math.prod(page.chunks)
    if tile > 16 * page.samplesperpixel * max(pixels, 2**16):
        raise RequestError(f"{name} is damaged: tiles of {tile} samples for {pixels} pixels")
    if page.compression not in _DEFLATE:
        return
    most = tile * ((int(page.bitspersample) + 7) // 8) + 2**16
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        file.seek(offset)
        inflate = zlib.decompressobj()
        inflate.decompress(file.read(count), most)
        if inflate.unconsumed_tail and not inflate.eof:
            raise RequestError(f"{name} is damaged: its pixels unpack to more than it says")


def _unassociated(levels: NDArray[Any], alpha: NDArray[Any], page: TiffPage) -> NDArray[Any]:
    """Undo the multiplication of colours with alpha."""
    peak = 1.0 if page.sampleformat == _FLOAT else float(2**page.bitspersample - 1)
    share = np.maximum(alpha[..., None].astype(np.float64) / peak, 1e-6)
    colors = np.minimum(levels / share, peak)
    return (colors if page.sampleformat == _FLOAT else np.rint(colors)).astype(levels.dtype)


def _eight_bits(levels: NDArray[Any], page: TiffPage, name: str) -> Pixels:
    """The levels over the whole range of their type, as 0 to 255."""
    bits = int(page.bitspersample)
    if page.sampleformat == _FLOAT:
        low, high = float(levels.min()), float(levels.max())
        if not (low >= 0 and high <= 1):  # so written, NaN is refused too
            raise RequestError(
                f"{name} holds {contents(page)} from {low:g} to {high:g}; expected 0 to 1: scale it, "
                "or save it with 8 or 16 bits"
            )
        return np.rint(levels.astype(np.float32) * 255).astype(np.uint8)
    if page.sampleformat != _UNSIGNED or (bits > 16 and levels.any() and levels.max() < 2 ** (bits - 8)):
        raise RequestError(
            f"{name} holds {contents(page)} from {levels.min()} to {levels.max()}, and not what white is; "
            "save it with 8 or 16 bits"
        )
    if bits == 8:
        return levels.astype(np.uint8, copy=False)
    if bits == 16 and levels.ndim == 3 and levels.shape[2] > 1:  # as Pillow does where it reads them
        return (levels >> 8).astype(np.uint8)
    peak = 2**bits - 1
    return ((levels.astype(np.uint64) * 255 + peak // 2) // peak).astype(np.uint8)
