"""Colour profiles: which ones a result keeps, and what becomes of pictures that are not RGB or grey.

The network knows numbers, not colours. Pixels of an RGB or grey profile pass through it as they are and the
profile is attached to the result, so nothing is clipped to a smaller gamut and no rounding is added; colour
correction keeps the result's colours at the input's numbers, whatever those stand for. Only CMYK and CIELAB
pictures are converted, to sRGB, because an RGB network cannot make such a picture.
"""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO

from PIL import Image, ImageCms

_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}


def srgb_profile() -> bytes:
    """The sRGB profile, always the same bytes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile[:24] + bytes(12) + profile[36:]  # no time of day, so that results are reproducible


def fits(profile: bytes, mode: str) -> bool:
    """Whether an ICC profile describes pictures of a mode: `L`, `RGB` or `CMYK` (ICC.1:2010, 7.2)."""
    return profile[36:40] == b"acsp" and profile[16:20] == _SPACES[mode]


def to_srgb(image: Image.Image) -> tuple[Image.Image, bytes | None, str]:
    """Convert a CMYK or LAB picture to RGB.

    The profile of a CMYK picture is used with the relative colorimetric intent and black point compensation,
    as photo editors do by default. A CMYK picture without a usable profile is converted by the plain formula
    (255 - C)(255 - K) / 255, whose colours are only roughly right.

    Returns:
        The RGB picture, the sRGB profile (None where the colours are unknown), and a note for the user.
    """
    is_lab, embedded, srgb = image.mode == "LAB", image.info.get("icc_profile") or b"", srgb_profile()
    converted = None
    if is_lab or fits(embedded, "CMYK"):
        with suppress(ImageCms.PyCMSError):  # the profile is damaged
            converted = ImageCms.profileToProfile(
                image,
                ImageCms.createProfile("LAB") if is_lab else BytesIO(embedded),
                BytesIO(srgb),
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                outputMode="RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
    if converted is None:
        note = f"{image.mode} without a usable profile, converted to RGB by the plain formula"
        return image.convert("RGB"), None, note
    return converted, srgb, f"{image.mode} converted to sRGB"
