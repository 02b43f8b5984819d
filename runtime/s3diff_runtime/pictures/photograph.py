"""Photographs in and out: every kind of picture becomes RGB for the network, and its own kind again after.

docs/upscaling.md says for each kind what happens to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.metadata import kept_exif, orientation_of, resized_exif
from s3diff_runtime.pictures.profiles import fits, to_srgb
from s3diff_runtime.vocabulary import Pixels

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a small file can unpack to gigabytes, and the result has
16 times the pixels."""

_OPENED = (
    "PNG",
    "JPEG",
    "WEBP",
    "TIFF",
)  # JPEG stands for MPO too: a JPEG with further pictures, as of phones
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_MODES = frozenset({"1", "L", "LA", "La"})
_COLOR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "YCbCr"})
_SIXTEEN_BIT_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_CONVERTED_MODES = frozenset({"CMYK", "LAB"})
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SUBFILE = 258, 262, 254  # TIFF tags
_WHITE_IS_ZERO, _REDUCED_COPY = 0, 1


@dataclass(frozen=True)
class Photograph:
    """A decoded picture, upright, and what its result must get back."""

    pixels: Pixels
    """uint8 RGB `[H, W, 3]`, read-only."""
    alpha: Pixels | None = None
    """uint8 `[H, W]`, 0 for transparent; None for a picture without transparency."""
    grey: bool = False
    """Whether the picture had no colour, so that the result must have none."""
    icc: bytes | None = None
    """The profile of the numbers in `pixels`; None means sRGB."""
    exif: bytes | None = None
    """The EXIF block that the result inherits."""
    notes: tuple[str, ...] = ()
    """What was lost or converted in decoding, for the user."""

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` of the upright picture."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def finish(self, upscaled: Pixels) -> Image.Image:
        """The upscaled picture as this one was: grey, with alpha, profile and EXIF where this one had them.

        Grey is the luma of the network's colours (Rec. 601). Alpha is resized beside, with Lanczos.

        Args:
            upscaled: uint8 RGB `[s·H, s·W, 3]` for any whole factor s.

        Returns:
            An image of mode L, LA, RGB or RGBA, the profile and EXIF in `info` under Pillow's names, which
            `save` writes into the file.

        Raises:
            RequestError: for an array that is no upscaled version of this picture.
        """
        height, width = self.pixels.shape[:2]
        scale = max(1, upscaled.shape[0] // height)
        if upscaled.dtype != np.uint8 or upscaled.shape != (scale * height, scale * width, 3):
            raise RequestError(
                f"the result is {upscaled.dtype} {list(upscaled.shape)}, expected uint8 "
                f"[s·{height}, s·{width}, 3] for a whole factor s"
            )
        image = Image.fromarray(upscaled)
        if self.grey:
            image = image.convert("L")
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha).resize(image.size, Image.Resampling.LANCZOS))
        if self.icc:
            image.info["icc_profile"] = self.icc
        if self.exif:
            image.info["exif"] = resized_exif(self.exif, image.width, image.height)
        return image


def open_photograph(
    source: str | Path | Image.Image | NDArray[Any], max_pixels: int = MAX_PIXELS
) -> Photograph:
    """Decode a picture, turned upright by its EXIF orientation.

    Args:
        source: a path to a PNG, JPEG, WebP or TIFF file; a PIL image; or a uint8 array `[H, W]`, `[H, W, 3]`
            or `[H, W, 4]`.
        max_pixels: larger pictures are refused, before decoding. Pillow's own `Image.MAX_IMAGE_PIXELS` holds
            as well.

    Raises:
        RequestError: when the file is missing, damaged, truncated, or none of these formats; when the picture
            is empty, too large, animated, has several pages, or has 32 bits per channel.
    """
    with _opened(source, max_pixels) as image:
        return _decoded(image)


def photograph_size(path: Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """`(width, height)` of the upright picture, read from the header alone.

    Raises:
        RequestError: as `open_photograph`, for what the header shows.
    """
    with _opened(path, max_pixels) as image:
        sideways = orientation_of(image) >= 5
        return (image.height, image.width) if sideways else image.size


@contextmanager
def _opened(source: str | Path | Image.Image | NDArray[Any], max_pixels: int) -> Iterator[Image.Image]:
    """An opened picture; all ways in which Pillow can fail, there or in the block, become a RequestError."""
    if isinstance(source, np.ndarray):
        name, source = "the array", _from_array(source)
    else:
        name = "the image" if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            _require_single_picture(name, source, max_pixels)
            yield source
        else:
            with Image.open(source, formats=_OPENED) as image:
                _require_single_picture(name, image, max_pixels)
                yield image
    except RequestError:
        raise
    except Image.UnidentifiedImageError as error:
        raise RequestError(f"{name} is not a PNG, JPEG, WebP or TIFF picture, or is damaged") from error
    except FileNotFoundError as error:
        raise RequestError(f"{name} does not exist") from error
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Pillow's decoders raise many kinds for damaged files
        raise RequestError(f"{name} cannot be read as a picture: {error}") from error


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


def _require_single_picture(name: str, image: Image.Image, max_pixels: int) -> None:
    size = f"{image.width}x{image.height} pixels"
    if not image.width or not image.height:
        raise RequestError(f"{name} is empty ({size})")
    if image.width * image.height > max_pixels:
        raise RequestError(f"{name} has {size}, more than the limit of {max_pixels} pixels")
    pictures = _count_pictures(image)
    if pictures > 1:
        raise RequestError(f"{name} is animated or has several pages ({pictures}); expected a single picture")


def _count_pictures(image: Image.Image) -> int:
    """Pictures of their own right: neither thumbnails in a TIFF nor what follows the first in an MPO."""
    frames = getattr(image, "n_frames", 1)
    if image.format == "MPO":
        return 1
    if image.format != "TIFF" or frames == 1:
        return frames
    reduced = 0
    for page in range(1, frames):
        image.seek(page)
        reduced += image.tag_v2.get(_SUBFILE, 0) & _REDUCED_COPY  # type: ignore[attr-defined]
    image.seek(0)
    return frames - reduced


def _decoded(image: Image.Image) -> Photograph:
    depth = _stored_depth(image)  # decoding forgets it
    image.load()
    exif, exif_note = kept_exif(image)
    plain, icc, notes = _plain(image, depth)
    method = _UPRIGHT.get(orientation_of(image))
    if method is not None:
        plain = plain.transpose(method)
    alpha = np.asarray(plain.getchannel("A")) if "A" in plain.mode else None
    if exif_note:
        notes.append(exif_note)
    return Photograph(
        np.asarray(plain.convert("RGB")), alpha, plain.mode in ("L", "LA"), icc, exif, tuple(notes)
    )


def _stored_depth(image: Image.Image) -> str:
    """How the file packs its channels, in Pillow's words, for example `RGB;16B`; empty once decoded."""
    tile = getattr(image, "tile", None)
    arguments = tile[0].args if tile else ""
    return str(arguments if isinstance(arguments, str) else arguments[0]) if arguments else ""


def _plain(image: Image.Image, depth: str) -> tuple[Image.Image, bytes | None, list[str]]:
    """The picture in mode L, LA, RGB or RGBA, the profile of its numbers, and notes on what changed."""
    if image.mode in _SIXTEEN_BIT_MODES:
        plain, notes = _eight_bits(image), ["16 bits per channel reduced to 8"]
    elif image.mode in _CONVERTED_MODES:
        plain, icc, note = to_srgb(image)
        return plain, icc, [note]
    elif image.mode in _GREY_MODES or image.mode in _COLOR_MODES:
        # Pillow decodes 16-bit grey with alpha as RGBA.
        grey = image.mode in _GREY_MODES or depth.startswith("LA;16")
        mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
        plain, notes = _converted(image, mode), []
        if ";16" in depth:
            notes.append("16 bits per channel reduced to 8")
    else:
        raise RequestError(
            f"pixels of type {image.mode} are not supported; expected 8 or 16 bits per channel"
        )
    icc = image.info.get("icc_profile")
    if icc and not fits(icc, plain.mode.removesuffix("A")):
        notes.append("a colour profile of another kind of picture, dropped")
        icc = None
    return plain, icc or None, notes


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "La":  # Pillow undoes premultiplied alpha only towards the same channels
        image = image.convert("LA")
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    return image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey (in TIFF also 12) as L, or as LA where the file calls one level transparent."""
    levels = np.asarray(image).astype(np.uint32)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    peak = (1 << bits) - 1
    opaque = levels != image.info["transparency"] if "transparency" in image.info else None
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = peak - levels
    grey = Image.fromarray(((levels * 255 + peak // 2) // peak).astype(np.uint8))
    if opaque is not None:
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return grey
