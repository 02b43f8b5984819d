"""Every kind of picture: what the network gets of it, what its result gets back, what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from tests.runtime.pictures import (
    ALPHA,
    GREY,
    HEIGHT,
    PICTURE,
    WIDTH,
    enlarged,
    png,
    sixteen_bit_png,
    with_alpha,
)

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.photograph import MAX_PIXELS, open_photograph, photograph_size

LOSSLESS = ["png", "tiff"]

# --- kinds of pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_pictures_come_back_in_their_mode(tmp_path: Path, mode: str, suffix: str) -> None:
    plain = {"RGB": Image.fromarray(PICTURE), "L": Image.fromarray(GREY)}
    original = plain.get(mode) or with_alpha(mode)
    original.save(tmp_path / f"in.{suffix}")
    photograph = open_photograph(tmp_path / f"in.{suffix}")
    expected = PICTURE if "RGB" in mode else np.stack([GREY] * 3, axis=-1)
    seen = ALPHA >= 32 if "A" in mode else np.ones_like(ALPHA, bool)
    assert np.array_equal(photograph.pixels[seen], expected[seen])
    assert photograph.notes == ()
    assert photograph.size == (WIDTH, HEIGHT)
    save(photograph.finish(enlarged(photograph.pixels)), tmp_path / f"out.{suffix}")
    with Image.open(tmp_path / f"out.{suffix}") as result:
        assert (result.mode, result.size) == (mode, (4 * WIDTH, 4 * HEIGHT))
        # Luma of equal channels is the level itself, so grey loses nothing either.
        colours = np.asarray(result.convert("RGB"))
        assert np.array_equal(colours, enlarged(photograph.pixels))
        if "A" in mode:
            alpha = np.asarray(result.getchannel("A")).astype(float)
            means = alpha.reshape(HEIGHT, 4, WIDTH, 4).mean((1, 3))
            assert np.abs(means - ALPHA)[:, 2:-2].mean() < 2  # its ends jump from row to row


def test_grey_result_is_the_luma_of_the_network_s_colours() -> None:
    photograph = open_photograph(GREY)
    tinted = np.zeros((4 * HEIGHT, 4 * WIDTH, 3), np.uint8)
    tinted[..., 1] = 200
    assert photograph.finish(tinted).getextrema() == (117, 117)


@pytest.mark.parametrize(
    ("mode", "expected"), [("1", "L"), ("YCbCr", "RGB"), ("RGBa", "RGBA"), ("La", "LA"), ("RGBX", "RGB")]
)
def test_rarer_modes_of_pillow(mode: str, expected: str) -> None:
    source = with_alpha("LA" if mode == "La" else "RGBA")
    image = source.convert(mode) if "a" in mode else source.convert("RGB").convert(mode)
    photograph = open_photograph(image)
    assert photograph.finish(enlarged(photograph.pixels)).mode == expected
    if mode == "RGBa":
        opaque = ALPHA > 200
        assert np.abs(photograph.pixels.astype(int) - PICTURE)[opaque].max() <= 2
        assert photograph.alpha is not None
        assert np.array_equal(photograph.alpha, ALPHA)


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_colours(tmp_path: Path, transparent: bool) -> None:
    image = Image.fromarray(PICTURE).quantize(16)
    image.save(tmp_path / "p.png", transparency=3 if transparent else None)
    photograph = open_photograph(tmp_path / "p.png")
    assert not photograph.grey
    seen = np.ones_like(ALPHA, bool) if photograph.alpha is None else photograph.alpha > 0
    assert np.array_equal(photograph.pixels[seen], np.asarray(image.convert("RGB"))[seen])
    if transparent:
        assert photograph.alpha is not None
        assert np.array_equal(photograph.alpha == 0, np.asarray(image) == 3)
    else:
        assert photograph.alpha is None


def test_transparent_colour_of_an_rgb_png_becomes_alpha(tmp_path: Path) -> None:
    colour = tuple(PICTURE[5, 7].tolist())
    Image.fromarray(PICTURE).save(tmp_path / "t.png", transparency=colour)
    photograph = open_photograph(tmp_path / "t.png")
    assert photograph.alpha is not None
    assert np.array_equal(photograph.alpha == 0, np.all(colour == PICTURE, axis=-1))


# --- 16 bits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["png", "tiff", "big-endian tiff", "image"])
def test_sixteen_bit_grey_is_rounded_over_the_whole_range(tmp_path: Path, container: str) -> None:
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    image = Image.fromarray(levels)
    if container == "image":
        photograph = open_photograph(image)
    else:
        if container.startswith("big"):
            image = Image.frombytes("I;16B", image.size, levels.astype(">u2").tobytes())
        image.save(tmp_path / "grey", format=container.split()[-1].upper())
        photograph = open_photograph(tmp_path / "grey")
    assert photograph.grey
    assert np.array_equal(photograph.pixels[..., 0], np.rint(levels / 257).astype(np.uint8))
    assert photograph.notes == ("16 bits per channel reduced to 8",)


def test_sixteen_bit_tiff_with_white_at_zero_is_inverted(tmp_path: Path) -> None:
    levels = GREY.astype(np.uint16) * 257
    Image.fromarray(levels).save(tmp_path / "w.tif", tiffinfo={262: 0})
    assert np.array_equal(open_photograph(tmp_path / "w.tif").pixels[..., 0], 255 - GREY)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_channels_are_reduced(tmp_path: Path, channels: int) -> None:
    eight = np.asarray(with_alpha("LA" if channels == 2 else "RGBA"))[..., :channels]
    (tmp_path / "deep.png").write_bytes(sixteen_bit_png(eight.astype(np.uint16) * 257))
    photograph = open_photograph(tmp_path / "deep.png")
    assert photograph.notes == ("16 bits per channel reduced to 8",)
    assert photograph.grey == (channels == 2)
    assert (photograph.alpha is not None) == (channels != 3)
    seen = np.ones_like(ALPHA, bool) if channels == 3 else ALPHA >= 32
    expected = PICTURE if channels > 2 else np.stack([GREY] * 3, -1)
    assert np.array_equal(photograph.pixels[seen], expected[seen])
    if photograph.alpha is not None:
        assert np.array_equal(photograph.alpha, ALPHA)


def test_transparent_level_of_a_sixteen_bit_png(tmp_path: Path) -> None:
    levels = np.array([[[7], [40_000]], [[40_000], [7]]], np.uint16)
    (tmp_path / "t.png").write_bytes(sixteen_bit_png(levels, (b"tRNS", struct.pack(">H", 7))))
    alpha = open_photograph(tmp_path / "t.png").alpha
    assert alpha is not None
    assert alpha.tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_other_depths_are_refused(mode: str) -> None:
    with pytest.raises(RequestError, match=f"type {mode} are not supported; expected 8 or 16 bits"):
        open_photograph(Image.new(mode, (4, 4)))


# --- what is refused --------------------------------------------------------------------------------


def animated(path: Path) -> None:
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1].copy())]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def truncated(path: Path) -> None:
    Image.fromarray(data.astronaut()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("animated.png", animated, "is animated"),
    ("animated.webp", animated, "is animated"),
    ("pages.tif", animated, "has several pages"),
    ("cut.png", truncated, "cannot be read: image file is truncated"),
    ("cut.jpg", truncated, "cannot be read: image file is truncated"),
    ("cut.webp", truncated, "is cut off: about 67% of it is there"),
    ("cut.tif", truncated, "is cut off: about 66 % of its pixels are there"),
    ("text.png", lambda path: path.write_text("not a picture"), "is not a PNG, JPEG, WEBP, TIFF, BMP"),
    ("empty.jpg", lambda path: path.touch(), "is empty"),
    ("other.ppm", lambda path: Image.fromarray(PICTURE).save(path), "is not a PNG, JPEG, WEBP, TIFF, BMP"),
    ("zero.png", lambda path: path.write_bytes(png(0, 5, 8, 2, b"")), "zero.png"),
    ("folder.png", lambda path: path.mkdir(), "cannot be read: Is a directory"),
    ("missing.png", lambda path: None, "does not exist"),
]


@pytest.mark.parametrize(("name", "make", "message"), REFUSED, ids=[case[0] for case in REFUSED])
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    make(tmp_path / name)
    with pytest.raises(RequestError, match=message) as caught:
        open_photograph(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_thumbnail_page_of_a_tiff_is_no_page(tmp_path: Path) -> None:
    thumbnail = Image.fromarray(PICTURE[::4, ::4].copy())
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(PICTURE).save(tmp_path / "t.tif", save_all=True, append_images=[thumbnail])
    assert np.array_equal(open_photograph(tmp_path / "t.tif").pixels, PICTURE)


def test_first_picture_of_a_phone_s_mpo_is_taken(tmp_path: Path) -> None:
    gain_map = Image.fromarray(GREY)
    Image.fromarray(PICTURE).save(tmp_path / "m.jpg", format="MPO", save_all=True, append_images=[gain_map])
    photograph = open_photograph(tmp_path / "m.jpg")
    assert photograph.size == (WIDTH, HEIGHT)
    assert not photograph.grey


def test_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png(9000, 9000, 8, 2, b"no such rows"))
    with pytest.raises(RequestError, match=f"9000x9000 pixels, more than the limit of {MAX_PIXELS} pixels"):
        open_photograph(tmp_path / "bomb.png")
    with pytest.raises(RequestError, match="limit of 2399 pixels; take it with --max-pixels 2400"):
        open_photograph(PICTURE, max_pixels=2399)
    (tmp_path / "huge.png").write_bytes(png(100_000, 100_000, 8, 2, b"no such rows"))
    with pytest.raises(RequestError, match=r"huge\.png"):  # Pillow's own limit
        photograph_size(tmp_path / "huge.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]; expected uint8"),
        (np.ones((4, 4, 2), np.uint8), r"\[4, 4, 2\]; expected uint8"),
        (np.ones((2, 4, 4, 3), np.uint8), r"\[2, 4, 4, 3\]; expected uint8"),
        (np.ones((0, 4, 3), np.uint8), "empty"),
    ],
)
def test_bad_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        open_photograph(array)


@given(
    st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 3, 4]), st.integers(1, 4), st.integers(0, 99)
)
def test_arrays_come_back_at_any_size_and_factor(
    height: int, width: int, channels: int | None, scale: int, seed: int
) -> None:
    shape = (height, width) if channels is None else (height, width, channels)
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    photograph = open_photograph(array)
    image = photograph.finish(photograph.pixels.repeat(scale, 0).repeat(scale, 1))
    assert image.mode == {None: "L", 3: "RGB", 4: "RGBA"}[channels]
    seen = array[..., 3] >= 32 if channels == 4 else np.ones(shape[:2], bool)
    assert np.array_equal(np.asarray(image)[::scale, ::scale][seen][..., :3], array[seen][..., :3])


@pytest.mark.parametrize("shape", [(160, 241, 3), (160, 180, 3), (40, 240, 3), (10, 15, 3), (160, 240)])
def test_result_must_be_an_enlargement(shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match=r"expected uint8 \[s·40, s·60, 3\]"):
        open_photograph(PICTURE).finish(np.zeros(shape, np.uint8))
