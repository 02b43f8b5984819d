"""TIFF in every layout that has a plain meaning; the truth is what was written, by another library."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.runtime.pictures import ALPHA, GREY, HEIGHT, PICTURE, WIDTH

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures import tiff
from s3diff_runtime.pictures.photograph import open_photograph, photograph_size

SEEN = np.maximum(ALPHA, 40)  # what is fainter takes colours from around
COLORS = {"": PICTURE, "a": np.dstack([PICTURE, SEEN]), "ax": np.dstack([PICTURE, SEEN, GREY])}
EXTRA = {"": None, "a": ["unassalpha"], "ax": ["unassalpha", "unspecified"], "x": ["unspecified"]}
DEPTHS = {
    "uint8": lambda pixels: pixels,
    "uint16": lambda pixels: pixels.astype(np.uint16) * 257,
    "uint32": lambda pixels: (pixels.astype(np.uint64) * 0x01010101).astype(np.uint32),
    "float16": lambda pixels: (pixels / 255).astype(np.float16),
    "float32": lambda pixels: (pixels / 255).astype(np.float32),
    "float64": lambda pixels: pixels / 255.0,
}


def written(pixels: np.ndarray, **options: Any) -> bytes:  # noqa: ANN401
    file = BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def planes(pixels: np.ndarray, layout: str) -> np.ndarray:
    return np.moveaxis(pixels, -1, 0) if layout == "separate" else pixels


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("extra", COLORS)
def test_colours_of_every_depth_and_layout(extra: str, depth: str, layout: str) -> None:
    stored = planes(DEPTHS[depth](COLORS[extra]), layout)
    for storage in (
        {"byteorder": "<"},
        {"byteorder": ">", "tile": (16, 32)},
        {"byteorder": ">", "bigtiff": True},
        {"byteorder": "<", "compression": "zlib", "rowsperstrip": 7, "predictor": depth[0] == "u"},
    ):
        photograph = open_photograph(
            written(stored, photometric="rgb", planarconfig=layout, extrasamples=EXTRA[extra], **storage)
        )
        assert np.array_equal(photograph.pixels, PICTURE), storage
        assert not photograph.grey
        assert (photograph.alpha is not None) == bool(extra)
        assert photograph.alpha is None or np.array_equal(photograph.alpha, SEEN)
        assert ("channels beside colour and alpha, dropped" in photograph.notes) == (extra == "ax")
        assert any("bits per channel reduced to 8" in note for note in photograph.notes) == (depth != "uint8")


@pytest.mark.parametrize("depth", DEPTHS)
def test_grey_of_every_depth(depth: str) -> None:
    plain = written(DEPTHS[depth](GREY), photometric="minisblack")
    assert np.array_equal(open_photograph(plain).pixels[..., 1], GREY)
    with_alpha = np.dstack([GREY, SEEN])
    for layout in ("contig", "separate"):
        stored = planes(DEPTHS[depth](with_alpha), layout)
        photograph = open_photograph(
            written(stored, photometric="minisblack", planarconfig=layout, extrasamples=["unassalpha"])
        )
        assert photograph.grey
        assert np.array_equal(photograph.pixels[..., 2], GREY)
        assert photograph.alpha is not None
        assert np.array_equal(photograph.alpha, SEEN)
    if depth[0] == "u":
        inverted = written(DEPTHS[depth](255 - GREY), photometric="miniswhite", byteorder=">")
        assert np.array_equal(open_photograph(inverted).pixels[..., 0], GREY)


@pytest.mark.parametrize("bits", [2, 4, 9, 10, 12, 14])
def test_depths_between(bits: int) -> None:
    pytest.importorskip("imagecodecs")
    peak = 2**bits - 1
    levels = (GREY.astype(np.uint32) * peak // 255).astype(np.uint8 if bits <= 8 else np.uint16)
    expected = np.rint(levels * (255 / peak))
    for stored, photometric in ((levels, "minisblack"), (np.dstack([levels] * 3), "rgb")):
        photograph = open_photograph(written(stored, photometric=photometric, bitspersample=bits))
        assert np.array_equal(photograph.pixels[..., 1], expected)


@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_premultiplied_colours_are_divided_again(layout: str) -> None:
    stored = np.dstack([np.rint(PICTURE * (SEEN[..., None] / 255)), SEEN]).astype(np.uint16) * 257
    photograph = open_photograph(
        written(planes(stored, layout), photometric="rgb", planarconfig=layout, extrasamples=["assocalpha"])
    )
    assert photograph.alpha is not None
    assert np.array_equal(photograph.alpha, SEEN)
    strong = SEEN > 128
    assert np.abs(photograph.pixels.astype(int) - PICTURE)[strong].max() <= 2


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("depth", ["uint8", "uint16"])
@pytest.mark.parametrize("extra", ["", "a"])
def test_inks_with_and_without_alpha(extra: str, depth: str, layout: str) -> None:
    inks = np.dstack([255 - PICTURE, np.zeros_like(GREY), SEEN])[..., : 5 if extra else 4]
    photograph = open_photograph(
        written(
            planes(DEPTHS[depth](inks), layout),
            photometric="separated", planarconfig=layout, extrasamples=EXTRA[extra],
        )
    )  # fmt: skip
    assert np.array_equal(photograph.pixels, PICTURE)
    assert (photograph.alpha is not None) == bool(extra)


def test_palettes_of_eight_and_sixteen_bits() -> None:
    colors = np.random.default_rng(0).integers(0, 2**16, (3, 2**16), dtype=np.uint16)
    for levels in (GREY, GREY.astype(np.uint16) * 200):
        table = colors[:, : 2 ** (8 * levels.itemsize)]
        photograph = open_photograph(written(levels, photometric="palette", colormap=table))
        assert np.array_equal(photograph.pixels, (table.T >> 8)[levels])


@pytest.mark.parametrize("compression", ["lzw", "zstd", "packbits", "lzma", "jpeg", "webp", "jpegxl", "lerc"])
def test_compressions(compression: str) -> None:
    pytest.importorskip("imagecodecs")
    for layout in ("contig", "separate") if compression != "webp" else ("contig",):
        stored = planes(PICTURE, layout)
        file = written(stored, photometric="rgb", planarconfig=layout, compression=compression)
        difference = np.abs(open_photograph(file).pixels.astype(int) - PICTURE)
        assert difference.mean() <= (6 if compression in ("jpeg", "webp", "jpegxl") else 0)


def test_without_the_extra_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("imagecodecs")
    stored = DEPTHS["uint16"](np.dstack([GREY, SEEN]))
    file = written(stored, photometric="minisblack", extrasamples=["unassalpha"], compression="lzw")
    fallback = __import__("tifffile._imagecodecs", fromlist=["_imagecodecs"])
    monkeypatch.setitem(sys.modules, "imagecodecs", fallback)
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", fallback)
    with pytest.raises(
        RequestError, match=r"packed as LZW, which needs: pip install 's3diff-export\[formats\]'"
    ):
        open_photograph(file)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (GREY.astype(np.int16), {}, r"16 signed bits from \d+ to \d+, and not what white is"),
        (GREY.astype(np.uint32), {}, r"32 bits from \d+ to \d+, and not what white is"),
        (GREY.astype(np.float32), {}, r"32 floating-point bits from \d+ to \d+; expected 0 to 1"),
        (np.full((9, 9), np.nan, np.float32), {}, r"from nan to nan; expected 0 to 1"),
        (GREY.astype(np.complex64), {}, "odd bits"),
        (np.stack([GREY] * 3), {"volumetric": True}, "holds 3 layers of 1 channels"),
        (np.zeros((9, 9, 40), np.uint8), {"planarconfig": "contig"}, "holds 40 channels"),
        (GREY, {"extratags": [(50706, 1, 4, (1, 4, 0, 0), False)]}, r"camera raw \(DNG\)"),
    ],
)
def test_what_has_no_plain_meaning_is_refused_by_name(
    tmp_path: Path, pixels: np.ndarray, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "odd.tif").write_bytes(written(pixels, photometric="minisblack", **options))
    with pytest.raises(RequestError, match=message) as caught:
        open_photograph(tmp_path / "odd.tif")
    assert "odd.tif" in str(caught.value)


def test_orientation_profile_and_tags_of_what_pillow_does_not_read() -> None:
    stored = planes(PICTURE[::-1, ::-1].astype(np.uint16) * 257, "separate")
    tags = [(274, 3, 1, 3, False), (315, 2, 0, "Ann", False), (34675, 7, 4, b"icc!", False)]
    file = written(stored, photometric="rgb", planarconfig="separate", extratags=tags, resolution=(300, 300))
    photograph = open_photograph(file)
    assert np.array_equal(photograph.pixels, PICTURE)
    assert "a colour profile of another kind of picture, dropped" in photograph.notes
    assert photograph.metadata.exif is not None
    exif = Image.Exif()
    exif.load(photograph.metadata.exif)
    assert exif[315] == "Ann"


def test_sizes_are_known_without_decoding(tmp_path: Path) -> None:
    for number, layout in enumerate(("contig", "separate")):
        path = tmp_path / f"{number}.tif"
        stored = planes(PICTURE.astype(np.uint16), layout)
        tifffile.imwrite(
            path, stored, photometric="rgb", planarconfig=layout, extratags=[(274, 3, 1, 6, False)]
        )
        assert photograph_size(path) == (HEIGHT, WIDTH)


def test_pages_are_counted_with_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(GREY)
        for _ in range(6):
            writer.write(GREY[::4, ::4].copy(), subfiletype=1)
    assert open_photograph(file.getvalue()).size == (WIDTH, HEIGHT)
    monkeypatch.setattr(tiff, "MOST_DIRECTORIES", 5)
    with pytest.raises(RequestError, match="more than 5 pages"):
        open_photograph(file.getvalue())


@pytest.mark.parametrize("layout", ["contig", "separate"])
def test_pixels_that_unpack_to_more_than_they_say(layout: str) -> None:
    stored = planes(np.zeros((64, 64, 3), np.uint16), layout)
    file = written(stored, photometric="rgb", planarconfig=layout, compression="zlib", rowsperstrip=64)
    # The height is told smaller than what was written.
    with tifffile.TiffFile(BytesIO(file)) as opened:
        at = opened.pages[0].tags[257].valueoffset  # type: ignore[union-attr]
    small = file[:at] + (1).to_bytes(2, "little") + file[at + 2 :]
    assert open_photograph(small).size == (64, 1)


def test_user_s_own_pillow_image_is_not_misread(tmp_path: Path) -> None:
    stored = planes(DEPTHS["uint16"](PICTURE), "separate")
    tifffile.imwrite(tmp_path / "planes.tif", stored, photometric="rgb", planarconfig="separate")
    with Image.open(tmp_path / "planes.tif") as image:
        assert np.array_equal(open_photograph(image).pixels, PICTURE)
