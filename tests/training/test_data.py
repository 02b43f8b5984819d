"""Photograph folders, single images, contact sheets: what is read, what is refused, what is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from skimage import data

from s3diff_runtime.errors import JobError, RequestError
from s3diff_runtime.files import replacing
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.photograph import Photograph, open_photograph
from s3diff_training.data import (
    PhotographFolder,
    contact_sheet,
    from_uint8,
    to_uint8,
)


def photograph(height: int, width: int) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:height, :width])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two usable photographs, one of them in a subfolder, and one file of each unusable kind."""
    (tmp_path / "deeper").mkdir()
    Image.fromarray(photograph(80, 120)).save(tmp_path / "a.png")
    Image.fromarray(photograph(200, 90)).save(tmp_path / "deeper" / "b.JPG", format="JPEG")
    Image.fromarray(photograph(20, 300)).save(tmp_path / "small.png")
    pages = [Image.new("L", (100, 100)), Image.new("L", (100, 100), 255)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, or so it says")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_unusable_images_are_skipped_with_their_reasons(folder: Path) -> None:
    photographs = PhotographFolder(folder, min_side=64)
    assert [path.name for path in photographs.paths] == ["a.png", "b.JPG"]
    reasons = {path.name: reason for path, reason in photographs.skipped}
    assert reasons.keys() == {"small.png", "pages.tiff", "broken.png"}
    assert "300x20" in reasons["small.png"]
    assert photographs.pixels == 80 * 120 + 200 * 90


def test_pixel_limit_refuses_before_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3diff_training.data.MAX_PIXELS", 10_000)
    photographs = PhotographFolder(folder, min_side=64)
    assert [path.name for path in photographs.paths] == ["a.png"]
    assert "the limit of 10000 pixels" in dict(photographs.skipped)[folder / "deeper" / "b.JPG"]


@pytest.mark.parametrize("case", ["empty", "missing", "only small"])
def test_folder_without_photographs_is_refused(tmp_path: Path, case: str) -> None:
    if case == "only small":
        Image.fromarray(photograph(32, 32)).save(tmp_path / "small.png")
    with pytest.raises(RequestError, match="not a folder" if case == "missing" else "no usable photograph"):
        PhotographFolder(tmp_path / "missing" if case == "missing" else tmp_path, min_side=64)


@pytest.mark.parametrize("memory_mib", [0, 2048])
def test_crops_follow_the_generator_alone(folder: Path, memory_mib: int) -> None:
    first = PhotographFolder(folder, min_side=64).crops(12, 48, torch.Generator().manual_seed(3))
    other = PhotographFolder(folder, min_side=64, memory_mib=memory_mib)
    assert first.shape == (12, 3, 48, 48)
    assert first.dtype == torch.uint8
    assert torch.equal(first, other.crops(12, 48, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, other.crops(12, 48, torch.Generator().manual_seed(4)))
    with pytest.raises(RequestError, match="min_side=64"):
        other.crops(1, 65, torch.Generator())


def test_crops_reach_every_pixel_in_all_eight_orientations(tmp_path: Path) -> None:
    pixels = np.arange(16 * 4 * 3, dtype=np.uint8).reshape(8, 8, 3)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    crops = PhotographFolder(tmp_path, min_side=7).crops(400, 7, torch.Generator().manual_seed(0))
    assert len({crop.numpy().tobytes() for crop in crops}) == 2 * 2 * 8


def test_photographs_are_drawn_by_area(tmp_path: Path) -> None:
    Image.new("RGB", (100, 300), (255, 0, 0)).save(tmp_path / "large.png")
    Image.new("RGB", (100, 100), (0, 0, 255)).save(tmp_path / "small.png")
    crops = PhotographFolder(tmp_path, min_side=16).crops(800, 16, torch.Generator().manual_seed(0))
    assert (crops[:, 0, 0, 0] == 255).float().mean().item() == pytest.approx(0.75, abs=0.05)


def test_memory_stays_within_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in range(4):
        Image.fromarray(photograph(400, 400)).save(tmp_path / f"{name}.png")  # 0.46 MiB each
    decoded: list[str] = []

    def counted(path: Path, max_pixels: int) -> Photograph:
        decoded.append(path.stem)
        return open_photograph(path, max_pixels)

    monkeypatch.setattr("s3diff_training.data.open_photograph", counted)
    photographs = PhotographFolder(tmp_path, memory_mib=1)
    for index in (0, 1, 0, 2, 0, 2):
        photographs.pixels_of(index)
    assert decoded == ["0", "1", "2"]
    photographs.pixels_of(1)  # it was the least recently used when there was no more room
    assert decoded[3:] == ["1"]


@pytest.mark.parametrize("damage", ["truncated", "floats beyond 1"])
def test_damage_found_late_is_reported_and_does_not_change_later_draws(folder: Path, damage: str) -> None:
    path = folder / "a.png"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])  # the header is whole, the pixels are not
    else:
        path = folder / "floats.tiff"
        Image.fromarray(np.full((100, 100), 7, np.float32)).save(path)  # a range of its own
    photographs = PhotographFolder(folder, min_side=64)
    generator = torch.Generator().manual_seed(0)
    photographs.crops(20, 32, generator)
    assert path in dict(photographs.skipped)
    fresh = PhotographFolder(folder, min_side=64)
    again = torch.Generator()
    again.set_state(generator.get_state())
    assert torch.equal(photographs.crops(20, 32, generator), fresh.crops(20, 32, again))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera lay on its side: turn clockwise
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(photograph(40, 100)).save(path, exif=exif)
    assert torch.equal(
        from_uint8(open_photograph(path).pixels), from_uint8(np.rot90(photograph(40, 100), -1).copy())
    )
    crops = PhotographFolder(tmp_path, min_side=40).crops(30, 40, torch.Generator().manual_seed(0))
    assert crops.shape == (30, 3, 40, 40)  # from its whole height, not from sides that were swapped twice


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_eight_bit_images_survive_both_ways(height: int, width: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(from_uint8(pixels)), pixels)


def test_saved_image_reads_back_clamped(tmp_path: Path) -> None:
    image = from_uint8(photograph(30, 20)) * 1.5 - 0.25
    save(Image.fromarray(to_uint8(image)), tmp_path / "new" / "p.png")
    assert torch.allclose(
        from_uint8(open_photograph(tmp_path / "new" / "p.png").pixels),
        image.clamp(0, 1),
        atol=0.5 / 255 + 1e-6,
    )


def test_contact_sheet_holds_every_image_under_its_label(tmp_path: Path) -> None:
    hr = from_uint8(photograph(64, 96))
    lr = hr[:, ::4, ::4]
    contact_sheet([[lr, hr], [lr, hr]], ["LR", "HR"], tmp_path / "sheet.png")
    sheet = from_uint8(open_photograph(tmp_path / "sheet.png").pixels)
    assert sheet.shape == (3, 22 + 8 + 2 * (64 + 8), 8 + 2 * (96 + 8))
    enlarged = lr.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(sheet[:, 30:94, 8:104], enlarged)
    assert torch.equal(sheet[:, 102:166, 112:208], hr)
    assert sheet[:, :30, 8:104].min() < 0.5  # ink of the caption
    with pytest.raises(RequestError, match="rows of 1 images"):
        contact_sheet([[lr, hr]], ["LR"], tmp_path / "sheet.png")


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(ValueError, match="half way"), replacing(target) as temporary:
        temporary.write_text("new")
        raise ValueError("half way")
    with pytest.raises(JobError, match=r"file\.txt.*No space left"), replacing(target):
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_takes_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "old").write_text("old")
    with replacing(tmp_path / "base") as temporary:
        temporary.mkdir()
        (temporary / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["base", "new"]
