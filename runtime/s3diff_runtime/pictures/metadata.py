"""EXIF of a photograph: what its result keeps."""

from __future__ import annotations

from PIL import ExifTags, Image

_BASE, _EXIF = ExifTags.Base, ExifTags.IFD.Exif

# Tags that say how a file lays out its pixels (TIFF 6.0, sections 8 and 11 to 21, and Adobe's), or that the
# writer sets itself: true of the old file alone. XMP and IPTC blocks repeat sizes and orientation.
_LAYOUT = frozenset(
    {
        *range(254, 260),  # subfile, width, length, bits per sample, compression
        262, 263, 264, 265, 266,  # photometric interpretation, thresholds, cells, fill order
        273, 274, 277, 278, 279, 280, 281, 284,  # strips, orientation, samples per pixel, planes
        288, 289, 290, 291, 292, 293, 301,  # free space, grey response, fax options, transfer function
        317, 318, 319, 320, 321, 322, 323, 324, 325, 330,  # predictor, colours, tiles, sub-IFDs
        *range(332, 348),  # inks, extra samples, sample format, JPEG tables
        *range(512, 522), 529, 530, 531, 532,  # old JPEG, YCbCr
        700, 33723, 34377, 34675,  # XMP, IPTC, Photoshop, ICC profile
    }
)  # fmt: skip


def orientation_of(image: Image.Image) -> int:
    """How the picture must be turned to stand upright: 1 (not at all) to 8, as in EXIF.

    TIFF files count as upright: Pillow turns them itself while it decodes, and gives their size as turned.
    """
    if image.format == "TIFF":
        return 1
    try:
        orientation = image.getexif().get(_BASE.Orientation, 1)
    except Exception:  # Pillow's parser raises many kinds for damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def kept_exif(image: Image.Image) -> tuple[bytes | None, str | None]:
    """The EXIF that a result inherits: everything but orientation, pixel layout and thumbnail.

    Returns:
        The EXIF block (None if there is nothing to keep), and a note for the user if it was damaged.
    """
    try:
        found, kept = image.getexif(), Image.Exif()
        for tag, value in found.items():
            if tag not in _LAYOUT and tag not in (_EXIF, ExifTags.IFD.GPSInfo):
                kept[tag] = value
        for part in (_EXIF, ExifTags.IFD.GPSInfo):
            if content := dict(found.get_ifd(part)):
                if ExifTags.IFD.Interop in content:  # an offset into the old block
                    content[ExifTags.IFD.Interop] = found.get_ifd(ExifTags.IFD.Interop)
                kept[part] = content
        return (kept.tobytes() if len(kept) else None), None
    except Exception:  # as above
        return None, "damaged EXIF, dropped"


def resized_exif(exif: bytes, width: int, height: int) -> bytes:
    """The EXIF block of `kept_exif` with its pixel dimensions set, where it has them."""
    block = Image.Exif()
    block.load(exif)
    content = block.get_ifd(_EXIF)
    for tag, size in ((_BASE.ExifImageWidth, width), (_BASE.ExifImageHeight, height)):
        if tag in content:
            content[tag] = size
    return block.tobytes()
