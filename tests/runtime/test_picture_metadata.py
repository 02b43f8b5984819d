"""Profiles, EXIF and formats: what a result keeps of its input, and how it is written."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data
from tests.runtime.pictures import (
    GREY,
    HEIGHT,
    PICTURE,
    SRGB,
    WIDTH,
    enlarged,
    exif_with,
    profile_of,
)

from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.pictures.formats import require_fit, save
from s3diff_runtime.pictures.photograph import open_photograph, photograph_size

# Pillow warns of what it skips in damaged EXIF; the command line silences it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

# --- profiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_rgb_profile_and_numbers_are_kept(tmp_path: Path, suffix: str) -> None:
    wide = SRGB[:60] + b"wide" + SRGB[64:]  # told from sRGB by its bytes alone
    Image.fromarray(PICTURE).save(tmp_path / "in.png", icc_profile=wide)
    photograph = open_photograph(tmp_path / "in.png")
    assert np.array_equal(photograph.pixels, PICTURE)
    save(photograph.finish(enlarged(photograph.pixels)), tmp_path / f"out.{suffix}")
    with Image.open(tmp_path / f"out.{suffix}") as result:
        assert result.info["icc_profile"] == wide


@pytest.mark.parametrize(
    ("pixels", "space", "kept"),
    [(GREY, b"GRAY", True), (GREY, b"RGB ", False), (PICTURE, b"GRAY", False), (PICTURE, b"CMYK", False)],
)
def test_profile_must_fit_the_picture(tmp_path: Path, pixels: np.ndarray, space: bytes, kept: bool) -> None:
    Image.fromarray(pixels).save(tmp_path / "in.tif", icc_profile=profile_of(space))
    photograph = open_photograph(tmp_path / "in.tif")
    assert photograph.metadata.icc_profile == (profile_of(space) if kept else None)
    assert [note for note in photograph.notes if "profile" in note] == (
        [] if kept else ["a colour profile of another kind of picture, dropped"]
    )


def cmyk_profile() -> bytes:
    """A CMYK profile whose one table (lut8, ICC.1:2010, 10.9) makes every ink but black pale, black dark."""
    lab = bytes(
        value
        for corner in range(16)  # the last input, black, varies fastest
        for value in ((30, 128, 128) if corner & 1 else (255 - 20 * (corner >> 1).bit_count(), 128, 128))
    )
    matrix = struct.pack(">9i", *(65536 * (row == column) for row in range(3) for column in range(3)))
    ramp = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab + ramp * 3
    text = b"text\0\0\0\0none\0"
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    tags, offset, body = b"", 132 + 12 * 4, b""
    for name, content in ((b"A2B0", table), (b"A2B1", table), (b"cprt", text), (b"wtpt", white)):
        content += bytes(-len(content) % 4)
        tags += name + struct.pack(">II", offset + len(body), len(content))
        body += content
    header = struct.pack(">I", offset + len(body)) + b"lcms" + struct.pack(">I", 0x02400000)
    header += b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", 4) + tags + body


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted_through_its_profile(tmp_path: Path, suffix: str) -> None:
    inks = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    inks.paste((0, 0, 0, 255), (0, 0, WIDTH // 2, HEIGHT))
    inks.save(tmp_path / f"in.{suffix}", icc_profile=cmyk_profile(), quality=100)
    photograph = open_photograph(tmp_path / f"in.{suffix}")
    assert photograph.notes == ("CMYK converted to sRGB",)
    pale = photograph.pixels[HEIGHT // 2, -8]
    assert pale.min() > 200, "the profile's cyan is nearly white; the plain formula would give 0, 255, 255"
    assert photograph.pixels[HEIGHT // 2, 8].max() < 60
    assert photograph.metadata.icc_profile is not None
    assert photograph.metadata.icc_profile[16:20] == b"RGB "
    assert photograph.metadata.icc_profile == open_photograph(tmp_path / f"in.{suffix}").metadata.icc_profile


@pytest.mark.parametrize("profile", [b"", b"junk", profile_of(b"CMYK")[:200]])
def test_cmyk_without_usable_profile_is_converted_by_the_formula(tmp_path: Path, profile: bytes) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 51, 51)).save(tmp_path / "in.tif", icc_profile=profile)
    photograph = open_photograph(tmp_path / "in.tif")
    assert np.abs(photograph.pixels[4, 4].astype(int) - (0, 204, 163)).max() <= 1
    assert photograph.metadata.icc_profile is None
    assert "plain formula" in photograph.notes[0]


def test_lab_is_converted() -> None:
    channels = [Image.new("L", (4, 4), level) for level in (136, 208, 195)]  # L 53, a 80, b 67: red
    photograph = open_photograph(Image.merge("LAB", channels))
    red, green, blue = photograph.pixels[0, 0].tolist()
    assert red > 240
    assert green < 30
    assert blue < 30


# --- EXIF -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_orientation_is_applied_and_the_rest_kept(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = Image.fromarray(PICTURE)
    stored.save(tmp_path / f"in.{suffix}", exif=exif_with(orientation), quality=100, lossless=True)
    photograph = open_photograph(tmp_path / f"in.{suffix}")
    # What EXIF 2.32 says of where the stored first row and first column belong.
    upright = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: x[::-1].transpose(1, 0, 2),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: x[:, ::-1].transpose(1, 0, 2),
    }[orientation](PICTURE)
    assert photograph.pixels.shape == upright.shape
    assert np.abs(photograph.pixels.astype(int) - upright).mean() < 4
    assert photograph_size(tmp_path / f"in.{suffix}") == photograph.size
    save(photograph.finish(enlarged(photograph.pixels)), tmp_path / f"out.{suffix}")
    with Image.open(tmp_path / f"out.{suffix}") as result:
        kept = result.getexif()
        assert result.size == (4 * upright.shape[1], 4 * upright.shape[0])
        assert kept.get(ExifTags.Base.Orientation, 1) == 1
        assert kept[ExifTags.Base.Artist] == "A. Photographer"
        details = kept.get_ifd(ExifTags.IFD.Exif)
        assert details[ExifTags.Base.ISOSpeedRatings] == 800
        assert details[ExifTags.Base.ExifImageWidth] == result.width
        assert details[ExifTags.Base.ExifImageHeight] == result.height
        assert kept.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_pil_image_is_left_as_it_was(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "in.jpg", exif=exif_with(6))
    with Image.open(tmp_path / "in.jpg") as image:
        photograph = open_photograph(image)
        assert photograph.size == (HEIGHT, WIDTH)
        assert image.size == (WIDTH, HEIGHT)
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        image.load()


def test_tags_of_a_tiff_s_layout_do_not_reach_other_formats(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "in.tif", exif=exif_with(1))
    photograph = open_photograph(tmp_path / "in.tif")
    assert photograph.metadata.exif is not None
    exif = Image.Exif()
    exif.load(photograph.metadata.exif)
    assert set(exif) == {ExifTags.Base.Artist, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_costs_only_itself(tmp_path: Path, suffix: str) -> None:
    block = exif_with(6)
    Image.fromarray(PICTURE).save(tmp_path / f"in.{suffix}", exif=block[:14] + b"\xff" * 40 + block[54:])
    photograph = open_photograph(tmp_path / f"in.{suffix}")
    assert sorted(photograph.size) == [HEIGHT, WIDTH]
    save(photograph.finish(enlarged(photograph.pixels)), tmp_path / f"out.{suffix}")


def test_exif_that_a_jpeg_cannot_hold_is_left_out(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "in.png", exif=exif_with(1, maker_note=70_000))
    photograph = open_photograph(tmp_path / "in.png")
    result = photograph.finish(enlarged(photograph.pixels))
    save(result, tmp_path / "out.jpg")
    save(result, tmp_path / "out.png")
    with Image.open(tmp_path / "out.jpg") as lossy, Image.open(tmp_path / "out.png") as lossless:
        assert not lossy.getexif()
        assert len(lossless.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote]) == 70_000


# --- saving -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "transparent", "message"),
    [
        ("a.jpg", (10, 10), True, "JPEG holds no transparency; choose png, webp or tiff"),
        ("a.jpg", (65_501, 10), False, "JPEG cannot hold 65501x10"),
        ("a.webp", (10, 16_384), False, "WEBP cannot hold 10x16384"),
        ("a.tif", (40_000, 40_000), False, "TIFF cannot hold"),
        ("a.gif", (10, 10), False, "names no format"),
    ],
)
def test_formats_have_limits(name: str, size: tuple[int, int], transparent: bool, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        require_fit(Path(name), *size, transparent)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_quality_counts(suffix: str, tmp_path: Path) -> None:
    for quality in (30, 95):
        save(Image.fromarray(data.astronaut()), tmp_path / f"{quality}.{suffix}", quality)
    assert (tmp_path / f"30.{suffix}").stat().st_size < (tmp_path / f"95.{suffix}").stat().st_size / 2


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    target = tmp_path / f"out.{suffix}"
    save(Image.fromarray(PICTURE), target)
    before = target.read_bytes()

    def full_disk(image: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(JobError, match=f"could not write .*out.{suffix}: No space left on device"):
        save(Image.fromarray(PICTURE), target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_saved_jpeg_keeps_its_colour_resolution(tmp_path: Path) -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    save(Image.fromarray(stripes), tmp_path / "s.jpg")
    content = (tmp_path / "s.jpg").read_bytes()
    with Image.open(BytesIO(content)) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - stripes).mean() < 12
