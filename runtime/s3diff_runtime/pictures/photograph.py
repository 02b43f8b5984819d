"""Photographs in and out: every kind of picture becomes RGB for the network, and its own kind again after.

docs/upscaling.md says for each kind what happens to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.metadata import Metadata, read_metadata
from s3diff_runtime.pictures.profiles import fits, to_srgb
from s3diff_runtime.pictures.reading import MAX_PIXELS, OpenedPicture, PictureSource, opened
from s3diff_runtime.pictures.transparency import without_hidden_colors
from s3diff_runtime.remote import Place
from s3diff_runtime.vocabulary import Pixels

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
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value of the second


@dataclass(frozen=True)
class Photograph:
    """A decoded picture, upright, and what its result must get back."""

    pixels: Pixels
    """uint8 RGB `[H, W, 3]`, read-only. Where nobody sees them, the colours are those of what lies around."""
    alpha: Pixels | None = None
    """uint8 `[H, W]`, 0 for transparent; None for a picture without transparency."""
    grey: bool = False
    """Whether the picture had no colour, so that the result must have none."""
    metadata: Metadata = field(default_factory=Metadata)
    """What the result inherits beside pixels."""
    notes: tuple[str, ...] = ()
    """What was lost or converted in decoding, for the user."""
    format: str = ""
    """Pillow's name of the file's format, such as `JPEG`; empty for pixels that came without a file."""

    @property
    def transparent(self) -> bool:
        """Whether some of it can be seen through: alpha may be opaque throughout."""
        return self.alpha is not None and bool(self.alpha.min() < 255)

    @property
    def size(self) -> tuple[int, int]:
        """`(width, height)` of the upright picture."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def finish(self, upscaled: Pixels, size: tuple[int, int] | None = None) -> Image.Image:
        """The upscaled picture as this one was: grey, with alpha, profile and EXIF where this one had them.

        Grey is the luma of the network's colours (Rec. 601). Alpha is resized beside, bicubically: what the
        kernel overshoots falls off at 0 and 255, and there are no ripples further out.

        Args:
            upscaled: uint8 RGB `[s·H, s·W, 3]` for any whole factor s.
            size: `(width, height)` that it is resized to, with Lanczos' filter; its own by default.

        Returns:
            An image of mode L, LA, RGB or RGBA. Its `info` holds profile, EXIF and all else that the result
            inherits, which `save` writes into the file.

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
        if size is not None and size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        if self.grey:
            image = image.convert("L")
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha).resize(image.size, Image.Resampling.BICUBIC))
        image.info.update(self.metadata.info_for(image.width, image.height, image.height / height))
        return image


def open_photograph(source: PictureSource | Photograph, max_pixels: int = MAX_PIXELS) -> Photograph:
    """Decode a picture, turned upright by its EXIF orientation.

    Args:
        source: a path; the bytes of a file, or a binary file; a PIL image; a uint8 array `[H, W]`,
            `[H, W, 3]` or `[H, W, 4]`; or a photograph, which is returned as it is.
        max_pixels: larger pictures are refused, before decoding. Pillow's own `Image.MAX_IMAGE_PIXELS` holds
            as well.

    Raises:
        RequestError: when the file is missing, damaged, cut off, no regular file, or of no format that is
            read; when the picture is empty, too large, animated, has several pages, or its numbers have no
            plain meaning as colours.
    """
    if isinstance(source, Photograph):
        return source
    with opened(source, max_pixels) as picture:
        return _decoded(picture)


def photograph_size(path: Place, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """`(width, height)` of the upright picture, read from the header alone.

    Raises:
        RequestError: as `open_photograph`, for what the header shows.
    """
    with opened(path, max_pixels, pixels=False) as picture:
        return _upright_size(picture)


def result_needs(path: Place, max_pixels: int, opaque_wanted: bool) -> tuple[tuple[int, int], bool]:
    """What the format of a result must hold: `(width, height)` of the upright input, and transparency.

    The header alone is read, unless it matters (`opaque_wanted`) whether an alpha channel hides anything.

    Raises:
        RequestError: as `open_photograph`, for what was read.
    """
    with opened(path, max_pixels, pixels=False) as picture:
        size, maybe = _upright_size(picture), picture.maybe_transparent
    return size, maybe and (not opaque_wanted or open_photograph(path, max_pixels).transparent)


def _upright_size(picture: OpenedPicture) -> tuple[int, int]:
    width, height = picture.size
    return (height, width) if picture.orientation >= 5 else (width, height)


def _decoded(picture: OpenedPicture) -> Photograph:
    image, alpha, notes = picture.decode()
    try:
        exif = picture.exif()
    except Exception:  # Pillow's parser raises many kinds for damaged EXIF
        exif = None
    metadata, metadata_notes = read_metadata(image, exif, picture.texts, picture.colors)
    plain, icc, plain_notes = _plain(image, picture.depth)
    if alpha is not None:
        plain.putalpha(Image.fromarray(alpha))
    method = _UPRIGHT.get(picture.orientation)
    if method is not None:
        plain = plain.transpose(method)
    pixels = np.asarray(plain.convert("RGB"))
    alpha = np.asarray(plain.getchannel("A")) if "A" in plain.mode else None
    return Photograph(
        pixels if alpha is None else without_hidden_colors(pixels, alpha),
        alpha,
        grey=plain.mode in ("L", "LA"),
        metadata=replace(metadata, icc_profile=icc, lossless=picture.lossless),
        notes=(*picture.notes, *notes, *plain_notes, *metadata_notes),
        format=picture.format,
    )


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
