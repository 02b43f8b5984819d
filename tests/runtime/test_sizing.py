"""`upscale --long-side` and `--size`: the least scale that reaches a size, then Lanczos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, enlarged, write_fake_bundle

from s3diff_runtime import RequestError
from s3diff_runtime.batch.sizing import ResultSize, Sizing
from s3diff_runtime.batch.upscaling import UpscaleRequest, run_upscale
from s3diff_runtime.errors import JobError, refuse
from s3diff_runtime.settings import PictureSettings

EXACT = PictureSettings(noise=0, blur=0, color_fix="none")
PICTURE = dark_noise(12, 20)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ResultSize(), (4, 400, 240)),
        (ResultSize(long_side=100), (1, 100, 60)),
        (ResultSize(long_side=101), (2, 101, 61)),
        (ResultSize(long_side=200), (2, 200, 120)),
        (ResultSize(long_side=50), (1, 50, 30)),
        (ResultSize(long_side=600), (4, 600, 360)),
        (ResultSize(long_side=1), (1, 1, 1)),
        (ResultSize(size="1920x180"), (3, 300, 180)),
        (ResultSize(size="250X1080"), (3, 250, 150)),
    ],
)
def test_the_least_scale_that_reaches_it(wanted: ResultSize, expected: tuple[int, int, int]) -> None:
    assert Sizing(wanted, 4, (1, 2, 3, 4)).of(100, 60) == expected


def test_only_scales_of_the_bundle_are_chosen() -> None:
    assert Sizing(ResultSize(long_side=150), 4, (4,)).of(100, 60) == (4, 150, 90)


def test_more_than_the_network_can_do_twice_is_refused() -> None:
    with pytest.raises(RequestError, match=r"100x60 pixels would be enlarged 8.1 times, expected at most 8"):
        Sizing(ResultSize(long_side=810), 4, (4,)).of(100, 60)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("bundle"), "dynamic")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    alpha = np.full(PICTURE.shape[:2], 200, np.uint8)
    Image.fromarray(np.dstack([PICTURE, alpha])).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def upscaled(
    bundle: Path, photo: Path, size: ResultSize, resume: bool = False, compare: bool = False
) -> Path:
    output = photo.parent / "out.png"
    report = photo.parent / "report.json"
    run_upscale(
        UpscaleRequest(
            (str(photo),),
            output,
            bundle,
            settings=EXACT,
            result_size=size,
            report=report,
            resume=resume,
            compare=compare,
        )
    )
    return output


@pytest.mark.parametrize(
    ("wanted", "size"), [(ResultSize(long_side=70), (70, 42)), (ResultSize(size="90x99"), (90, 54))]
)
def test_results_have_the_size_that_was_asked_for(
    bundle: Path, photo: Path, wanted: ResultSize, size: tuple[int, int]
) -> None:
    result = Image.open(upscaled(bundle, photo, wanted))
    assert (result.size, result.mode) == (size, "RGBA")
    expected = Image.fromarray(enlarged(PICTURE)).resize(size, Image.Resampling.LANCZOS)
    difference = np.asarray(result.convert("RGB")).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1
    assert set(np.asarray(result)[..., 3].ravel()) == {200}
    report = json.loads((photo.parent / "report.json").read_text())
    assert tuple(report["images"][0]["output_size"]) == size
    assert report["settings"]["long_side"] == wanted.long_side
    assert report["settings"]["size"] == wanted.size


@pytest.mark.parametrize("long_side", [10, 47, 70])
def test_comparisons_show_the_whole_of_both(bundle: Path, photo: Path, long_side: int) -> None:
    upscaled(bundle, photo, ResultSize(long_side=long_side), compare=True)
    result, sheet = Image.open(photo.parent / "out.png"), Image.open(photo.parent / "out.compare.png")
    halves = [
        sheet.crop((at, sheet.height - result.height, at + result.width, sheet.height))
        for at in (0, sheet.width - result.width)
    ]
    white = Image.new("RGB", result.size, "white")
    white.paste(result.convert("RGB"), mask=result.getchannel("A"))
    assert np.array_equal(np.asarray(halves[1]), np.asarray(white))
    assert np.abs(np.asarray(halves[0]).astype(int).mean() - np.asarray(white).mean()) < 12


def test_resume_knows_the_size(bundle: Path, photo: Path) -> None:
    size = ResultSize(long_side=70)
    upscaled(bundle, photo, size)
    for wanted, status in ((size, "skipped"), (ResultSize(long_side=71), "done")):
        upscaled(bundle, photo, wanted, resume=True)
        report = json.loads((photo.parent / "report.json").read_text())
        assert report["images"][0]["status"] == status


def test_the_plan_shows_the_size(bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ResultSize(long_side=70)
    request = UpscaleRequest((str(photo),), photo.parent / "out.png", bundle, result_size=size, dry_run=True)
    run_upscale(request)
    assert "(20x12 -> 70x42, new)" in capsys.readouterr().out


def test_a_picture_that_would_be_too_large_fails_alone(bundle: Path, photo: Path) -> None:
    with pytest.raises(JobError, match=r"1 of 1 images failed; .* enlarged 10.0 times, expected at most 8"):
        upscaled(bundle, photo, ResultSize(long_side=200))


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        (PictureSettings(), {"size": "big"}, "size is 'big', expected WIDTHxHEIGHT in pixels, as 1920x1080"),
        (PictureSettings(), {"size": "0x5"}, "size is '0x5'"),
        (PictureSettings(), {"size": "9x9", "long_side": 9}, "a result has one size; pass one of them"),
        (PictureSettings(scale=2), {"long_side": 9}, "--scale with --long-side; a result has one size"),
        (PictureSettings(), {"long_side": 0}, "long_side is 0, expected from 1"),
    ],
)
def test_sizes_that_are_none(
    bundle: Path, photo: Path, settings: PictureSettings, size: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        wanted = ResultSize(**size)  # type: ignore[arg-type]
        request = UpscaleRequest((str(photo),), Path("x"), bundle, settings=settings, result_size=wanted)
        refuse(request.problems())
