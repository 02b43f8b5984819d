"""Files that lack an end, or hold something odd beside their pixels: read where all pixels are there."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from skimage import data
from tests.runtime.pictures import GREY, PICTURE, SRGB, exif_with, png

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.photograph import open_photograph, photograph_size
from s3diff_runtime.pictures.reading import MAX_SIDE

PHOTOGRAPH = np.ascontiguousarray(data.astronaut()[:96, :80])
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def encoded(format: str, pixels: np.ndarray = PHOTOGRAPH, **options: Any) -> bytes:  # noqa: ANN401
    file = BytesIO()
    Image.fromarray(pixels).save(file, format=format, **options)
    return file.getvalue()


def notes_of(file: bytes, truth: np.ndarray) -> tuple[str, ...]:
    photograph = open_photograph(file)
    assert np.array_equal(photograph.pixels, truth)
    return photograph.notes


# --- without an end -------------------------------------------------------------------------------

JPEGS: list[dict[str, Any]] = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}]


@pytest.mark.parametrize("options", JPEGS)
def test_jpeg_without_its_end_marker_is_whole(options: dict[str, Any]) -> None:
    file = encoded("JPEG", quality=90, **options)
    truth = open_photograph(file).pixels
    assert notes_of(file[:-1], truth) == notes_of(file[:-2], truth)
    assert notes_of(file[:-2], truth) == ("the end marker of the JPEG is missing",)
    assert notes_of(file + bytes(1000), truth) == ()


@pytest.mark.parametrize("rest", [b"", bytes(1000)])
@pytest.mark.parametrize("options", JPEGS)
def test_cut_jpeg_is_refused_and_says_how_much_is_there(options: dict[str, Any], rest: bytes) -> None:
    file = encoded("JPEG", quality=90, **options)
    for cut in (5, 8, 40, len(file) // 3):
        with pytest.raises(RequestError, match=r"is truncated; (about \d+ of its 96 rows|its last scans)"):
            open_photograph(file[:-cut] + rest)


def test_rows_of_a_cut_jpeg_are_counted() -> None:
    file = encoded("JPEG", quality=90)
    scan = file.index(b"\xff\xda")
    with pytest.raises(RequestError) as caught:
        open_photograph(file[: (scan + len(file)) // 2])
    rows = int(str(caught.value).partition("about ")[2].split()[0])
    assert 24 <= rows <= 72


def test_progressive_jpeg_that_ends_between_scans_is_cut() -> None:
    file = encoded("JPEG", quality=90, progressive=True)
    with pytest.raises(RequestError, match="its last scans, which hold the details, are missing"):
        open_photograph(file[: file.rindex(b"\xff\xc4")])


def test_png_without_its_end_is_whole_and_a_cut_one_says_how_much_is_there() -> None:
    file = encoded("PNG")
    for cut in (1, 12, 13, 16):  # the end chunk, and the checksum of the pixels
        assert notes_of(file[:-cut], PHOTOGRAPH) == ()
    for share in (0.25, 0.5, 0.9):
        with pytest.raises(
            RequestError, match=r"image file is truncated; about \d+% of its pixels"
        ) as caught:
            open_photograph(file[: round(share * len(file))])
        assert abs(int(str(caught.value).partition("about ")[2].split("%")[0]) - 100 * share) < 12


def test_webp_that_is_cut_behind_its_pixels() -> None:
    file = encoded("WEBP", lossless=True, exif=exif_with(1), xmp=XMP)
    photograph = open_photograph(file[:-8])
    assert np.array_equal(photograph.pixels, PHOTOGRAPH)
    assert photograph.metadata.exif is not None
    assert photograph.metadata.xmp is None
    assert photograph.notes == ("the end of the WebP is missing, and what it said",)
    with pytest.raises(RequestError, match=r"is cut off: about \d\d% of it is there"):
        open_photograph(file[: len(file) // 2])


@pytest.mark.parametrize("format", ["TIFF", "AVIF", "BMP", "GIF"])
def test_other_formats_say_how_much_is_there(format: str) -> None:
    file = encoded(format)
    for share in (0.5, 0.95):
        with pytest.raises(RequestError, match=r"(about|at most) \d+ ?% of it|the file ends after \d+ bytes"):
            open_photograph(file[: round(share * len(file))])


# --- odd beside the pixels ------------------------------------------------------------------------


def png_with(kind: bytes, content: bytes, behind: bool = False) -> bytes:
    """The photograph with one chunk more, its checksum right."""
    file = encoded("PNG")
    at = len(file) - 12 if behind else 33
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return file[:at] + chunk + file[at:]


BOMB = zlib.compress(bytes(3_000_000))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("kind", "content", "note"),
    [
        (b"iCCP", b"icc\0\1" + zlib.compress(SRGB), "PNG iCCP damaged, dropped"),
        (b"iCCP", b"icc\0\0" + BOMB, "PNG iCCP too large, dropped"),
        (b"iCCP", b"icc\0\0not packed", "PNG iCCP damaged, dropped"),
        (b"iTXt", b"big\0\1\0\0\0" + BOMB, "PNG iTXt (big) too large, dropped"),
        (b"iTXt", b"bad\0\0\0\0\0\xff\xfe", "PNG iTXt (bad) damaged, dropped"),
        (b"zTXt", b"big\0\0" + BOMB, "PNG zTXt (big) too large, dropped"),
        (b"tEXt", b"", "PNG tEXt () damaged, dropped"),
        (b"tEXt", b"k\0" + bytes(2_000_000), "PNG tEXt too large, dropped"),
        (b"pHYs", b"\0\0", "PNG pHYs damaged, dropped"),
        (b"tRNS", b"\0", "PNG tRNS damaged, dropped"),
        (b"gAMA", b"", "PNG gAMA damaged, dropped"),
        (b"acTL", b"\0", "PNG acTL damaged, dropped"),
        (b"bKGD", bytes(6), "PNG bKGD not true of a result, dropped"),
        (b"zzZz", b"anything", "PNG zzZz not true of a result, dropped"),
    ],
)
def test_odd_and_large_png_chunks_cost_only_themselves(
    kind: bytes, content: bytes, note: str, behind: bool
) -> None:
    assert notes_of(png_with(kind, content, behind), PHOTOGRAPH) == (note,)


def test_wrong_checksum_costs_an_ancillary_chunk_alone() -> None:
    file = bytearray(png_with(b"tEXt", b"key\0words"))
    at = file.index(b"words")
    file[at] ^= 1
    assert notes_of(bytes(file), PHOTOGRAPH) == ("PNG tEXt (key) damaged, dropped",)
    file = bytearray(encoded("PNG"))
    file[len(file) // 2] ^= 1
    with pytest.raises(RequestError, match="cannot be read"):
        open_photograph(bytes(file))


@pytest.mark.parametrize(
    ("marker", "content"),
    [(0xE0, b"JFIF\0"), (0xE2, b"ICC_PROFILE\0"), (0xE1, b"Exif\0\0"), (0xED, b"Photoshop 3.0\x008BIM")],
)
def test_odd_jpeg_markers_cost_only_themselves(marker: int, content: bytes) -> None:
    file = encoded("JPEG", exif=exif_with(3))
    truth = open_photograph(file).pixels
    odd = file[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + file[2:]
    photograph = open_photograph(odd)
    assert np.array_equal(photograph.pixels, truth), "the orientation is still found"
    assert photograph.metadata.exif is not None


def test_what_follows_a_picture_is_no_part_of_it() -> None:
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        file = encoded(format, GREY)
        assert notes_of(file + b"junk" * 100, open_photograph(file).pixels) == ()


def test_mutated_metadata_never_stops_a_picture() -> None:
    text = PngInfo()
    text.add_text("Title", "a title")
    text.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=True)
    beside = {"exif": exif_with(1), "icc_profile": SRGB, "dpi": (300, 300)}
    random = np.random.default_rng(0)
    for file, start in (
        (encoded("PNG", PICTURE, pnginfo=text, **beside), b"iCCP"),
        (encoded("JPEG", PICTURE, xmp=XMP, comment=b"words", **beside), b"Exif"),
    ):
        first, last = (
            file.index(start) + 4,
            file.index(b"IDAT") if start == b"iCCP" else file.index(b"\xff\xdb"),
        )
        shape = open_photograph(file).pixels.shape
        for _ in range(150):
            mutated = bytearray(file)
            mutated[int(random.integers(first, last - 8))] = int(random.integers(256))
            try:
                assert sorted(open_photograph(bytes(mutated)).pixels.shape) == sorted(shape)
            except RequestError as error:  # the length of a chunk or marker: what follows it is lost
                assert str(error)


# --- what is no file of a picture, or too much of one ---------------------------------------------


def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for read in (open_photograph, photograph_size):
        with pytest.raises(RequestError, match=r"pipe\.png is not a regular file"):
            read(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match="null is not a regular file"):
        open_photograph("/dev/null")


def test_sides_are_bounded_too() -> None:
    with pytest.raises(RequestError, match="has 1x65536 pixels, and sides are limited to 65535"):
        open_photograph(png(1, MAX_SIDE + 1, 8, 0, b"no such rows"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in the place of the picture"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"%PDF-1.7", "a PDF document"),
        (b"8BPS\0\1", "a Photoshop document"),
    ],
)
def test_what_is_something_else_is_called_so(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(RequestError, match=f"a.png is {what}"):
        open_photograph(tmp_path / "a.png")
