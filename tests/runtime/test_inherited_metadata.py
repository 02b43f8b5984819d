"""What a file says beside pixels, profile and EXIF: kept where the result's format holds it, or told."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tests.runtime.pictures import HEIGHT, PICTURE, enlarged, exif_with

from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.metadata import Metadata
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.pictures.png import text_of

FORMATS = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP"}
WRITTEN = ["png", "jpg", "webp", "tif"]
IPTC = b"\x1c\x02\x05\0\x05Title\x1c\x02\x74\0\x03(c)"
RESOURCES = (
    b"8BIM\x03\xed\0\0\0\0\0\x10" + bytes(16)
    + b"8BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC + bytes(len(IPTC) % 2)
)  # fmt: skip
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6" exif:PixelXDimension="60" dc:rights="me">'
    b"<tiff:ImageWidth>60</tiff:ImageWidth></d></x:xmpmeta>"
)


def outcome(source: bytes, suffix: str, folder: Path) -> tuple[Metadata, tuple[str, ...]]:
    """What a result says when it is read again, and all notes."""
    photograph = open_photograph(source)
    notes = photograph.notes + save(photograph.finish(enlarged(photograph.pixels)), folder / f"out.{suffix}")
    return open_photograph(folder / f"out.{suffix}").metadata, notes


def saved(format: str, **options: Any) -> bytes:  # noqa: ANN401
    file = BytesIO()
    Image.fromarray(PICTURE).save(file, format=format, **options)
    return file.getvalue()


def rich_jpeg() -> bytes:
    marker = b"Photoshop 3.0\0" + RESOURCES
    extra = b"\xff\xed" + struct.pack(">H", len(marker) + 2) + marker
    return saved("JPEG", dpi=(300, 200), comment="Grüße".encode(), xmp=XMP, extra=extra)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("suffix", WRITTEN)
def test_resolution_is_kept_from_every_format_in_every_format(
    tmp_path: Path, source: str, suffix: str
) -> None:
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = 300.0, 200.0, 2
    options: dict[str, Any] = {"exif": exif} if source == "webp" else {"dpi": (300, 200)}
    metadata, notes = outcome(saved(FORMATS[source], **options), suffix, tmp_path)
    assert metadata.dpi == pytest.approx((300, 200), rel=1e-4)
    assert notes == ()


@pytest.mark.parametrize("suffix", WRITTEN)
def test_xmp_iptc_and_comment_of_a_jpeg(tmp_path: Path, suffix: str) -> None:
    metadata, notes = outcome(rich_jpeg(), suffix, tmp_path)
    width = 4 * HEIGHT  # XMP said how the picture must be turned
    assert metadata.xmp is not None
    said = metadata.xmp.decode()
    assert 'tiff:Orientation="1"' in said
    assert f'PixelXDimension="{width}"' in said
    assert f"<tiff:ImageWidth>{width}<" in said
    assert 'dc:rights="me"' in said
    assert metadata.iptc == (IPTC if suffix in ("jpg", "tif") else None)
    dropped = {"png": "IPTC", "jpg": "", "webp": "IPTC the comment", "tif": "the comment"}[suffix]
    assert " ".join(note.partition(" dropped")[0] for note in notes) == dropped
    assert metadata.comment == ("Grüße".encode() if suffix == "jpg" else None)
    assert [text_of(chunk) for chunk in metadata.texts] == (["Grüße"] if suffix == "png" else [])


@pytest.mark.parametrize("suffix", WRITTEN)
def test_xmp_and_iptc_of_a_tiff(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[700], exif[33723] = XMP, IPTC
    metadata, _ = outcome(saved("TIFF", exif=exif), suffix, tmp_path)
    assert metadata.xmp is not None
    assert metadata.iptc == (IPTC if suffix in ("jpg", "tif") else None)


def test_text_of_a_png(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("parameters", "Steps: 20")
    text.add_text("Title", "Å", zip=True)
    text.add_itxt("Description", "日本", lang="ja")
    text.add_text("Comment", "made by hand")
    file = saved("PNG", pnginfo=text)
    metadata, notes = outcome(file, "png", tmp_path)
    assert [text_of(chunk) for chunk in metadata.texts] == ["Steps: 20", "Å", "日本", "made by hand"]
    assert notes == ()
    metadata, notes = outcome(file, "jpg", tmp_path)
    assert metadata.comment == b"made by hand"
    assert notes == ("text (parameters, Title, Description) dropped: JPEG cannot hold it",)
    assert outcome(file, "webp", tmp_path)[1] == (
        "text (parameters, Title, Description, Comment) dropped: WEBP cannot hold it",
    )


def test_what_the_numbers_of_a_png_mean(tmp_path: Path) -> None:
    linear, srgb = PngInfo(), PngInfo()
    linear.add(b"gAMA", struct.pack(">I", 100_000))
    linear.add(b"cICP", bytes([9, 16, 0, 1]))
    srgb.add(b"sRGB", b"\0")
    srgb.add(b"gAMA", struct.pack(">I", 45_455))
    metadata, notes = outcome(saved("PNG", pnginfo=linear), "png", tmp_path)
    assert [chunk.content for chunk in metadata.colors] == [struct.pack(">I", 100_000), bytes([9, 16, 0, 1])]
    assert notes == ()
    for suffix in ("jpg", "webp", "tif"):
        _, notes = outcome(saved("PNG", pnginfo=linear), suffix, tmp_path)
        assert notes[0].startswith("what the colours mean (gAMA, cICP) dropped")
        metadata, notes = outcome(saved("PNG", pnginfo=srgb), suffix, tmp_path)
        assert metadata.icc_profile is not None, "a profile says the same"
        assert notes == ()


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_without_loss_stays_so(tmp_path: Path, lossless: bool) -> None:
    file = saved("WEBP", lossless=lossless)
    assert outcome(file, "webp", tmp_path)[0].lossless == lossless
    with Image.open(tmp_path / "out.webp") as result:
        equal = np.array_equal(np.asarray(result.convert("RGB")), enlarged(open_photograph(file).pixels))
    assert equal == lossless


def test_what_is_about_old_pixels_is_dropped_with_a_note(tmp_path: Path) -> None:
    gain_map = XMP.replace(b"dc:rights", b"hdrgm:Version")
    metadata, notes = outcome(saved("JPEG", xmp=gain_map, extra=b"\xff\xe2\0\x08MPF\0xx"), "jpg", tmp_path)
    assert metadata.xmp is None
    assert "XMP about further pictures in the file (depth, gain map), dropped" in notes
    assert "JPEG APP2 (MPF) not true of a result, dropped" in notes
    exif = Image.Exif()
    exif[33550], exif[270] = (1.0, 1.0, 0.0), '{"shape": [40, 60, 3]}'
    assert sorted(outcome(saved("TIFF", exif=exif), "tif", tmp_path)[1]) == [
        "a description of the old pixels' layout, dropped",
        "georeference of the pixels, dropped",
    ]


def test_blocks_too_long_for_a_jpeg_are_told(tmp_path: Path) -> None:
    long = XMP.replace(b"me", b"me" * 40_000)
    file = saved("WEBP", xmp=long, exif=exif_with(1, maker_note=70_000))
    assert outcome(file, "jpg", tmp_path)[1] == (
        "EXIF over 64 KiB dropped: JPEG cannot hold it",
        "XMP over 64 KiB dropped: JPEG cannot hold it",
    )
    assert outcome(file, "png", tmp_path)[1] == ()
