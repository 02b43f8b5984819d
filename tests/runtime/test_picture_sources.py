"""What pictures come as, from Python; and the formats beside PNG, JPEG, WebP and TIFF."""

from __future__ import annotations

from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.pictures import ALPHA, PICTURE, exif_with

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures import formats
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.upscaler import Upscaler


def encoded(format: str, **options: Any) -> bytes:  # noqa: ANN401
    file = BytesIO()
    Image.fromarray(PICTURE).save(file, format=format, **options)
    return file.getvalue()


class Stream:
    """A file that can be read once, as from a socket."""

    def __init__(self, content: bytes) -> None:
        self._file = BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def test_bytes_and_open_files_are_taken(tmp_path: Path) -> None:
    content = encoded("PNG")
    (tmp_path / "a.png").write_bytes(content)
    written = BytesIO()
    written.write(content)  # and left at its end
    with (tmp_path / "a.png").open("rb") as file:
        for source in (
            content,
            bytearray(content),
            memoryview(content),
            BytesIO(content),
            written,
            file,
            Stream(content),
        ):
            assert np.array_equal(open_photograph(source).pixels, PICTURE)  # type: ignore[arg-type]
        assert not file.closed
    with pytest.raises(RequestError, match=r"a\.png is not a PNG"):
        (tmp_path / "a.png").write_bytes(b"text")
        with (tmp_path / "a.png").open("rb") as file:
            open_photograph(file)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (None, "the image is None; expected a path, the bytes of a file"),
        ([[1, 2], [3, 4]], "the image is of type list; expected a path"),
        (7, "the image is of type int; expected"),
        (StringIO("words"), "what the file gives is of type str; open it in binary mode"),
        (b"", r"the image is empty \(0 bytes\)"),
    ],
)
def test_what_is_no_picture_gets_one_line(source: Any, what: str) -> None:  # noqa: ANN401
    with pytest.raises(RequestError, match=what) as caught:
        open_photograph(source)
    assert len(str(caught.value)) < 200


class Tensor:
    """Looks like one of a framework, down to what it prints."""

    shape = (3, 2000, 2000)

    def __repr__(self) -> str:
        return "[[0., 0., 0.]] " * 1000


def test_tensor_is_named_with_its_shape() -> None:
    with pytest.raises(RequestError, match=r"Tensor of \[3, 2000, 2000\]; expected a path") as caught:
        open_photograph(Tensor())  # type: ignore[arg-type]
    assert len(str(caught.value)) < 250


def test_upscaler_takes_all_that_photographs_come_as(tmp_path: Path) -> None:
    content = encoded("PNG")
    with Upscaler.open(write_fake_bundle(tmp_path / "bundle", "dynamic")) as upscaler:
        expected = upscaler(PICTURE).pixels
        assert np.array_equal(upscaler(content).pixels, expected)
        many = upscaler([BytesIO(content), content, open_photograph(PICTURE, max_pixels=2400)])
        assert all(np.array_equal(result.pixels, expected) for result in many)
        wrongs: list[Any] = [None, [None], [[1, 2]], 3]
        for wrong in wrongs:
            with pytest.raises(RequestError, match=r"the image is (None|of type \w+); expected a path"):
                upscaler(wrong)


# --- other formats --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.bmp", "a.dib", "a.gif", "a.jfif", "a.jpe", "a.jif", "a.avif"])
def test_what_pillow_reads_by_itself(tmp_path: Path, name: str) -> None:
    format = {"bmp": "BMP", "dib": "DIB", "gif": "GIF", "avif": "AVIF"}.get(name[2:], "JPEG")
    (tmp_path / name).write_bytes(encoded(format))
    photograph = open_photograph(tmp_path / name)
    assert np.abs(photograph.pixels.astype(int) - PICTURE).mean() < (12 if format == "GIF" else 5)
    assert formats.not_read(tmp_path / name) == ""


@pytest.mark.parametrize(
    ("name", "format", "module"), [("a.heic", "HEIF", "pillow_heif"), ("a.jxl", "JXL", "pillow_jxl")]
)
def test_what_plugins_read(
    tmp_path: Path, name: str, format: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    getattr(pytest.importorskip(module), "register_heif_opener", lambda: None)()
    (tmp_path / name).write_bytes(encoded(format, quality=95, exif=exif_with(6)))
    photograph = open_photograph(tmp_path / name)
    upright = np.rot90(PICTURE, -1) if format == "HEIF" else PICTURE
    assert np.abs(photograph.pixels.astype(int) - upright).mean() < 8
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        RequestError,
        match=rf"is a {format} picture, which needs: pip install .*\[formats\]",
    ):
        open_photograph(tmp_path / name)
    assert "formats" in formats.not_read(tmp_path / name)


def test_deep_heic_of_another_colour_space_says_so() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    deep = PICTURE.astype(np.uint16) * 257
    heif = pillow_heif.from_bytes(mode="RGB;16", size=PICTURE.shape[1::-1], data=deep.tobytes())
    file = BytesIO()
    heif.save(file, color_primaries=9, transfer_characteristics=16)
    photograph = open_photograph(file.getvalue())
    assert photograph.notes == ("10 bits per channel reduced to 8",)
    assert [chunk.content for chunk in photograph.metadata.colors] == [bytes([9, 16, 0, 1])]
    half = file.getvalue()[: len(file.getvalue()) // 2]
    with pytest.raises(RequestError, match=r"is cut off: at most \d\d% of it is there"):
        open_photograph(half)


def test_animated_gif_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1].copy())]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(RequestError, match="is animated or has several pages"):
        open_photograph(tmp_path / "a.gif")


def test_transparency_of_a_gif(tmp_path: Path) -> None:
    image = Image.fromarray(np.where(ALPHA > 128, 1, 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.gif", transparency=0)
    photograph = open_photograph(tmp_path / "a.gif")
    assert photograph.alpha is not None
    assert np.array_equal(photograph.alpha == 255, ALPHA > 128)
    assert np.all(photograph.pixels == (200, 100, 50))
