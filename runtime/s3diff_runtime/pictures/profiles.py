"""Colour profiles: which ones a result keeps, and what becomes of pictures that are not RGB or grey.

The network knows numbers, not colours. Pixels of an RGB or grey profile pass through it as they are and the
profile is attached to the result, so nothing is clipped to a smaller gamut and no rounding is added; colour
correction keeps the result's colours at the input's numbers, whatever those stand for. Only CMYK and CIELAB
pictures are converted, to sRGB, because an RGB network cannot make such a picture.
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageCms

_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}


def srgb_profile() -> bytes:
    """The sRGB profile, always the same bytes."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return (
        profile[:24] + bytes(12) + profile[36:]
    )  # without the time of day, so that results are reproducible


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
    embedded = image.info.get("icc_profile") or b""
    source = None
    if image.mode == "LAB":
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif fits(embedded, "CMYK"):
        source = _usable(embedded)
    if source is None:
        return (
            image.convert("RGB"),
            None,
            "CMYK without a usable profile, converted to RGB by the plain formula",
        )
    srgb = srgb_profile()
    try:
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.ImageCmsProfile(BytesIO(srgb)),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except ImageCms.PyCMSError:
        return (
            image.convert("RGB"),
            None,
            f"{image.mode} with a damaged profile, converted by the plain formula",
        )
    if converted is None:  # only for inPlace=True, says the annotation
        raise TypeError("profileToProfile returned no image")
    return converted, srgb, f"{image.mode} converted to sRGB"


def _usable(profile: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(BytesIO(profile))
    except (OSError, ImageCms.PyCMSError):
        return None
