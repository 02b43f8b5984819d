"""What a file says beside its pixels: what is still true of the result, and what formats hold of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import IFDRational

from s3diff_runtime.pictures.jpeg import LONGEST_MARKER, iptc_marker, iptc_of, said_in_markers
from s3diff_runtime.pictures.png import COLOR_CHUNKS, COMMENT_KEYWORD, XMP_KEYWORD, Chunk, text_of
from s3diff_runtime.pictures.profiles import srgb_profile

_BASE, _EXIF = ExifTags.Base, ExifTags.IFD.Exif
_XMP, _IPTC, _PHOTOSHOP = 700, 33723, 34377  # TIFF tags
_RESOLUTION = (_BASE.XResolution, _BASE.YResolution, _BASE.ResolutionUnit)
_PER_INCH = {2: 1.0, 3: 2.54}  # by ResolutionUnit

# Tags that say how a file lays out its pixels (TIFF 6.0, sections 8 and 11 to 21, and Adobe's), or that the
# writer sets itself: true of the old file alone. XMP, IPTC and profiles are kept by themselves.
_LAYOUT = frozenset(
    {
        *range(254, 260),  # subfile, width, length, bits per sample, compression
        262, 263, 264, 265, 266,  # photometric interpretation, thresholds, cells, fill order
        273, 274, 277, 278, 279, 280, 281, 284,  # strips, orientation, samples per pixel, planes
        288, 289, 290, 291, 292, 293, 301,  # free space, grey response, fax options, transfer function
        317, 318, 319, 320, 321, 322, 323, 324, 325, 330,  # predictor, colours, tiles, sub-IFDs
        *range(332, 348),  # inks, extra samples, sample format, JPEG tables
        *range(512, 522), 529, 530, 531, 532,  # old JPEG, YCbCr
        _XMP, _IPTC, _PHOTOSHOP, 34675,  # the last is the ICC profile
    }
)  # fmt: skip
_GEOREFERENCE = frozenset({33550, 33922, 34264, 34735, 34736, 34737})  # of old pixels: GeoTIFF
_SHAPES = re.compile(r'\s*(\{"shape": |ImageJ=|<\?xml.*<OME )', re.DOTALL)
"""Descriptions that programs of microscopy write and read: the old picture's shape."""
_FURTHER_PICTURES = re.compile(r"hdrgm:|Container:Directory|GImage:|GDepth:|MicroVideo|MotionPhoto")
"""XMP about what follows the picture in its file, and does not follow its result."""
_MOST_XMP_IN_JPEG, _MOST_DENSITY = 65_502, 65_535


@dataclass(frozen=True)
class Metadata:
    """What a result inherits, under Pillow's names where it has one."""

    icc_profile: bytes | None = None
    """The profile of the numbers in the pixels; None means sRGB."""
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    comment: bytes | None = None
    dpi: tuple[float, float] | None = None
    """Pixels an inch, across and down."""
    texts: tuple[Chunk, ...] = ()
    """Text chunks of a PNG."""
    colors: tuple[Chunk, ...] = ()
    """What the numbers mean, as PNG chunks say it; an ICC profile goes before."""
    lossless: bool = False
    """Whether the file was a WebP without loss."""

    def info_for(self, width: int, height: int, scale: float) -> dict[str, Any]:
        """It all as `info` of a result of so many pixels."""
        values = vars(self) | {
            "exif": self.exif and _resized_exif(self.exif, width, height),
            "xmp": self.xmp and _resized_xmp(self.xmp, width, height, scale),
        }
        return {name: value for name, value in values.items() if value}


def orientation_of(image: Image.Image) -> int:
    """How the picture must be turned to stand upright: 1 (not at all) to 8, as in EXIF.

    TIFF and JPEG XL count as upright: they are turned while they are decoded, and give their size as turned.
    """
    if image.format in ("TIFF", "JXL"):
        return 1
    try:
        orientation = exif_of(image).get(_BASE.Orientation, 1)
    except Exception:  # Pillow's parser raises many kinds for damaged EXIF
        return 1
    return orientation if orientation in range(1, 9) else 1


def exif_of(image: Image.Image) -> Image.Exif:
    """EXIF, or the tags of a TIFF, without decoding the picture; raises many kinds for damaged ones."""
    return Image.Image.getexif(image)  # of PNG, Pillow would look for more behind the pixels


def read_metadata(
    image: Image.Image, exif: Image.Exif | None, texts: Sequence[Chunk] = (), colors: Sequence[Chunk] = ()
) -> tuple[Metadata, list[str]]:
    """What a decoded picture's result inherits, but for the ICC profile, and notes on what it does not.

    Args:
        image: its `info` and markers are read.
        exif: the EXIF or TIFF tags; None where they could not be read.
        texts, colors: of a PNG, see `take_apart`.
    """
    info, notes = image.info, list[str]()
    kept, exif_notes = (None, ["damaged EXIF, dropped"]) if exif is None else _kept_exif(exif)
    notes += exif_notes
    tags: Any = exif or {}
    xmp, iptc, comment = info.get("xmp"), None, info.get("comment")
    dpi = info.get("dpi")
    if image.format in ("JPEG", "MPO"):
        comment, iptc, marker_notes = said_in_markers(getattr(image, "applist", []))
        notes += marker_notes
        if info.get("jfif_unit") not in (1, 2):
            dpi = None  # Pillow makes one up
    elif image.format == "TIFF" or (image.format is None and _XMP in tags):
        xmp, iptc = _bytes(tags.get(_XMP)), _bytes(tags.get(_IPTC))
        iptc = iptc or iptc_of(_bytes(tags.get(_PHOTOSHOP)) or b"")
        if _PHOTOSHOP in tags:
            notes.append("Photoshop resources, dropped")
        dpi = None
    if image.format == "MPO":
        notes.append("further pictures in the file (depth, gain map), dropped")
    if info.get("aspect") and info["aspect"][0] != info["aspect"][1]:
        notes.append("ratio of the sides of pixels, dropped")
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if xmp:
        xmp, xmp_notes = _kept_xmp(xmp)
        notes += xmp_notes
    found = Metadata(
        exif=kept,
        xmp=xmp or None,
        iptc=iptc,
        comment=comment if isinstance(comment, bytes) else None,
        dpi=_positive(dpi) or _exif_dpi(tags),
        texts=tuple(texts),
        colors=tuple(colors),
    )
    return found, notes


# --- what is true of the result -------------------------------------------------------------------


def _kept_exif(found: Image.Exif) -> tuple[bytes | None, list[str]]:
    """Everything but orientation, pixel layout and thumbnail."""
    notes = list[str]()
    try:
        kept = Image.Exif()
        for tag, value in found.items():
            if tag in _GEOREFERENCE:
                notes.append("georeference of the pixels, dropped")
            elif tag == _BASE.ImageDescription and _SHAPES.match(str(value)):
                notes.append("a description of the old pixels' layout, dropped")
            elif tag not in _LAYOUT and tag not in (_EXIF, ExifTags.IFD.GPSInfo):
                kept[tag] = value
        for part in (_EXIF, ExifTags.IFD.GPSInfo):
            if content := dict(found.get_ifd(part)):
                if ExifTags.IFD.Interop in content:  # an offset into the old block
                    content[ExifTags.IFD.Interop] = found.get_ifd(ExifTags.IFD.Interop)
                kept[part] = content
        return (kept.tobytes() if len(kept) else None), list(dict.fromkeys(notes))
    except Exception:  # as above
        return None, ["damaged EXIF, dropped"]


def _resized_exif(exif: bytes, width: int, height: int) -> bytes:
    """The EXIF block with its pixel dimensions set, where it has them."""
    block = Image.Exif()
    block.load(exif)
    content = block.get_ifd(_EXIF)
    for tag, size in ((_BASE.ExifImageWidth, width), (_BASE.ExifImageHeight, height)):
        if tag in content:
            content[tag] = size
    return block.tobytes()


def _kept_xmp(xmp: bytes) -> tuple[bytes | None, list[str]]:
    try:
        text = xmp.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        return None, ["XMP that is not UTF-8, dropped"]
    if _FURTHER_PICTURES.search(text):
        return None, ["XMP about further pictures in the file (depth, gain map), dropped"]
    if "xmpNote:HasExtendedXMP" in text:
        text = re.sub(r'\sxmpNote:HasExtendedXMP\s*=\s*("[^"]*"|\'[^\']*\')', "", text)
        return text.encode(), ["the part of XMP over 64 KiB, dropped"]
    return text.encode(), []


def _resized_xmp(xmp: bytes, width: int, height: int, scale: float) -> bytes:
    """XMP with what it repeats of size and orientation set, as attributes or elements, where it has them."""
    text = xmp.decode()
    values = {
        "tiff:Orientation": 1,
        "tiff:ImageWidth": width,
        "tiff:ImageLength": height,
        "exif:PixelXDimension": width,
        "exif:PixelYDimension": height,
    }
    for name, value in values.items():
        text = re.sub(rf"(\b{name}(?:\s*=\s*[\"']|>)\s*)\d+", rf"\g<1>{value}", text)
    panorama = r"(\bGPano:\w+Pixels(?:\s*=\s*[\"']|>)\s*)(\d+)"  # of a sphere and the part that is seen
    return re.sub(panorama, lambda match: f"{match[1]}{round(int(match[2]) * scale)}", text).encode()


def _bytes(value: object) -> bytes | None:
    """A TIFF value as bytes: writers disagree on the types of XMP and IPTC."""
    if isinstance(value, bytes | None):
        return value or None
    if isinstance(value, str):
        return value.encode("latin-1", "replace")
    if isinstance(value, tuple) and all(isinstance(number, int) for number in value):
        size = 1 if max(value, default=0) < 256 else 4
        return b"".join((number % 2**32).to_bytes(size, "little") for number in value)
    return None


def _positive(dpi: object) -> tuple[float, float] | None:
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    x, y = (float(each) for each in dpi)
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _exif_dpi(tags: Any) -> tuple[float, float] | None:  # noqa: ANN401 - Image.Exif, or a dict
    try:
        x, y, unit = (tags.get(tag) for tag in _RESOLUTION)
        per_inch = _PER_INCH.get(2 if unit is None else unit)
        return _positive((float(x) * per_inch, float(y) * per_inch)) if x and y and per_inch else None
    except (TypeError, ValueError, ZeroDivisionError):
        return None


# --- what formats hold ----------------------------------------------------------------------------


@dataclass
class _Encoding:
    """Options for one of Pillow's encoders, and what found no place there."""

    format: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def drop(self, what: str) -> None:
        self.notes.append(f"{what} dropped: {self.format} cannot hold it")


def encoder_options(image: Image.Image, format: str) -> tuple[dict[str, Any], list[str]]:
    """How one of Pillow's encoders is told the metadata in an image's `info`, see `Metadata.info_for`.

    Args:
        image: of mode L, LA, RGB or RGBA.
        format: `PNG`, `JPEG`, `WEBP` or `TIFF`.

    Returns:
        Options of `Image.save`, and a note on each thing that the format cannot hold.
    """
    info, encoding = image.info, _Encoding(format)
    colors: tuple[Chunk, ...] = info.get("colors", ())
    icc = info.get("icc_profile")
    if format != "PNG" and colors and not icc:
        if _says_srgb(colors) and image.mode in ("RGB", "RGBA"):
            icc = srgb_profile()
        else:
            encoding.drop("what the colours mean (" + ", ".join(each.kind.decode() for each in colors) + ")")
    encoding.options["icc_profile"] = icc
    {"PNG": _for_png, "JPEG": _for_jpeg, "WEBP": _for_webp, "TIFF": _for_tiff}[format](info, encoding)
    if info.get("iptc") and format in ("PNG", "WEBP"):
        encoding.drop("IPTC")
    if info.get("comment") and format in ("WEBP", "TIFF"):
        encoding.drop("the comment")
    left = [each for each in info.get("texts", ()) if not _as_comment(each, format)]
    if left and format != "PNG":
        keywords = dict.fromkeys(each.keyword.decode("latin-1") for each in left)
        encoding.drop(f"text ({', '.join(keywords)})")
    return {name: value for name, value in encoding.options.items() if value is not None}, encoding.notes


def _for_png(info: dict[Any, Any], encoding: _Encoding) -> None:
    chunks = PngInfo()
    for chunk in (*info.get("colors", ()), *info.get("texts", ())):
        chunks.add(chunk.kind, chunk.content)
    if xmp := info.get("xmp"):
        chunks.add_itxt(XMP_KEYWORD.decode(), xmp.decode())
    if comment := info.get("comment"):
        chunks.add_text(COMMENT_KEYWORD.decode(), comment.decode("utf-8", "replace").replace("\0", ""))
    encoding.options |= {"exif": info.get("exif"), "dpi": info.get("dpi")}
    if chunks.chunks:
        encoding.options["pnginfo"] = chunks


def _for_jpeg(info: dict[Any, Any], encoding: _Encoding) -> None:
    comments = [info.get("comment") or b""]
    comments += [text_of(each).encode() for each in info.get("texts", ()) if _as_comment(each, "JPEG")]
    comment = b"\n".join(filter(None, comments))
    marker = iptc_marker(info["iptc"]) if info.get("iptc") else None
    dpi = info.get("dpi")
    blocks = {
        "exif": ("EXIF over 64 KiB", info.get("exif"), LONGEST_MARKER),
        "xmp": ("XMP over 64 KiB", info.get("xmp"), _MOST_XMP_IN_JPEG),
        "comment": ("a comment over 64 KiB", comment, LONGEST_MARKER),
    }
    for name, (words, block, most) in blocks.items():
        if block and len(block) > most:
            encoding.drop(words)
            encoding.options[name] = b""
        else:
            encoding.options[name] = block
    if info.get("iptc") and marker is None:
        encoding.drop("IPTC over 64 KiB")
    if dpi and max(dpi) > _MOST_DENSITY:
        encoding.drop("the resolution")
    elif dpi:
        encoding.options["dpi"] = dpi
    encoding.options["extra"] = marker


def _for_webp(info: dict[Any, Any], encoding: _Encoding) -> None:
    exif, dpi = info.get("exif"), info.get("dpi")
    if dpi:
        block = Image.Exif()
        block.load(exif or b"")
        if _BASE.XResolution not in block:
            for tag, value in zip(_RESOLUTION, (*map(_rational, dpi), 2), strict=True):
                block[tag] = value
            exif = block.tobytes()
    encoding.options |= {"exif": exif, "xmp": info.get("xmp"), "lossless": info.get("lossless", False)}
    encoding.options["exact"] = encoding.options["lossless"]


def _for_tiff(info: dict[Any, Any], encoding: _Encoding) -> None:
    block = Image.Exif()
    block.load(info.get("exif") or b"")
    for tag, name in ((_XMP, "xmp"), (_IPTC, "iptc")):
        if info.get(name):
            block[tag] = info[name]
    encoding.options |= {"exif": block if len(block) else None, "dpi": info.get("dpi")}


def _rational(number: float) -> IFDRational:
    return IFDRational(round(number * 1000), 1000)


def _as_comment(chunk: Chunk, format: str) -> bool:
    return format == "JPEG" and chunk.keyword == COMMENT_KEYWORD


def _says_srgb(colors: Sequence[Chunk]) -> bool:
    by_kind = {chunk.kind: chunk.content for chunk in colors}
    first = next(kind for kind in COLOR_CHUNKS if kind in by_kind)
    return first == b"sRGB" or (first == b"cICP" and by_kind[first][:2] == bytes([1, 13]))
