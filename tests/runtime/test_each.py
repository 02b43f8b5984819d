"""`upscale --each`: settings of single pictures from a CSV file, and the same from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.runtime.fake_bundle import dark_noise, enlarged, expected_shift, write_fake_bundle

from s3diff_runtime import RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.batch.jobs import plan_jobs
from s3diff_runtime.batch.upscaling import UpscaleRequest, run_upscale
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.settings import PictureSettings, UpscaleSettings
from s3diff_runtime.vocabulary import Pixels

PICTURES = {"a.png": dark_noise(8, 8, 0), "b.png": dark_noise(8, 8, 1), "deep/a.png": dark_noise(8, 8, 2)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("bundle"), "dynamic", prompts="runtime")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, pixels in PICTURES.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / name)
    return tmp_path / "in"


def reported(bundle: Path, photos: Path, text: str) -> dict[str, dict[str, object]]:
    """The settings of each picture in the report, by name."""
    table, report = photos.parent / "each.csv", photos.parent / "report.json"
    table.write_text(text)
    request = UpscaleRequest((str(photos),), photos.parent / "reported", bundle, each=table, report=report)
    run_upscale(request)
    images = json.loads(report.read_text())["images"]
    return {Path(image["input"]).name: image["settings"] for image in images}


def test_the_report_has_the_settings_of_each(bundle: Path, photos: Path) -> None:
    found = reported(bundle, photos, "input,noise\nb.png,0.5\n")
    assert found["b.png"] == {"noise": 0.5}
    assert found["a.png"] == {}


def run(
    bundle: Path, photos: Path, text: str, *, prompt: str | None = None, negative_prompt: str | None = None
) -> dict[str, np.ndarray]:
    """Upscale all with the settings of a CSV file, and read the results."""
    table = photos.parent / "each.csv"
    table.write_text(text, encoding="utf-8")
    settings = PictureSettings(
        noise=0, blur=0, color_fix="none", prompt=prompt, negative_prompt=negative_prompt
    )
    output = photos.parent / "out"
    run_upscale(UpscaleRequest((str(photos),), output, bundle, settings=settings, each=table))
    return {name: open_photograph(output / name).pixels for name in PICTURES}


def test_each_picture_gets_its_own(bundle: Path, photos: Path) -> None:
    text = "input,prompt,noise\nin/a.png,dark,\nb.png,,0.5\nin/deep/a.png,bright,1\n"
    found = run(bundle, photos, text, negative_prompt="", prompt="bright")
    expected = {
        "a.png": expected_shift(0, 0, positive="dark"),
        "b.png": expected_shift(0.5, 0, positive="bright"),
        "deep/a.png": expected_shift(1, 0, positive="bright"),
    }
    for name, shift in expected.items():
        np.testing.assert_allclose(found[name].astype(int), enlarged(PICTURES[name], shift), atol=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns none; expected input, and some of noise"),
        ("input,sharpness\n", "has the columns input, sharpness"),
        ("prompt\nx\n", "has the columns prompt; expected input"),
        ("input,noise,noise\n", "has the columns input, noise, noise"),
        ("input,scale\na,2\n", "has the columns input, scale"),
        ("input,noise\nnone.png,1\n", "line 2: none.png is none of the inputs"),
        ("input,noise\na.png,1\n", "line 2: a.png is the name of several inputs"),
        ("input,noise\n,1\n", "line 2: an empty cell is none of the inputs"),
        ("input,noise\nb.png,2\n", "line 2: noise is 2.0, expected from 0 to 1"),
        ("input,noise\nb.png,much\n", "line 2: noise is 'much', expected a number"),
        ("input,color_fix\nb.png,sepia\n", "line 2: color_fix is 'sepia'"),
        ("input,noise\nb.png,1\nin/b.png,0\n", "line 3: in/b.png is named twice"),
        ("input,noise\nb.png\n", "line 2: more or fewer cells than columns"),
        ("input,noise\nb.png,1,2\n", "line 2: more or fewer cells than columns"),
        ("input,noise\n1,1\n2,1\n3,1\n4,1\n5,1\n", "line 4: .*; and 2 more$"),
        ("input,tags\nb.png,sky\n", "b.png: S3Diff takes no tags"),
        ("input,prompt,tags\nb.png,sky,sky\n", "line 2: prompt and tags"),
    ],
)
def test_wrong_files_are_refused_before_any_work(bundle: Path, photos: Path, text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        run(bundle, photos, text)
    assert not (photos.parent / "out").exists()


def test_a_file_that_cannot_be_read(bundle: Path, photos: Path) -> None:
    for name, content in (("missing.csv", None), ("latin.csv", b"input,prompt\nb.png,caf\xe9\n")):
        table = photos.parent / name
        if content is not None:
            table.write_bytes(content)
        request = UpscaleRequest((str(photos),), photos.parent / "out", bundle, each=table)
        with pytest.raises(RequestError, match=r"cannot be read .* expected a CSV file in UTF-8"):
            run_upscale(request)


def _prompt_of(pixels: Pixels) -> UpscaleSettings:
    return {"prompt": "dark" if np.array_equal(pixels, PICTURES["a.png"]) else "bright"}


def test_from_python(bundle: Path) -> None:
    images = [PICTURES["a.png"], PICTURES["b.png"]]
    asked: dict[str, Any] = {"noise": 0, "blur": 0, "color_fix": "none", "negative_prompt": ""}
    with Upscaler.open(bundle, options=UpscaleOptions(threads=1)) as upscaler:
        listed = upscaler(images, [{"prompt": "dark"}, {"prompt": "bright"}], **asked)
        made = upscaler(images, _prompt_of, **asked)
        for image, prompt, result, same in zip(images, ("dark", "bright"), listed, made, strict=True):
            shifted = enlarged(image, expected_shift(0, 0, positive=prompt))
            np.testing.assert_allclose(result.pixels.astype(int), shifted, atol=1)
            np.testing.assert_array_equal(same.pixels, result.pixels)
        with pytest.raises(RequestError, match="settings of 1 images for 2; expected one of each"):
            upscaler(images, [{}])
        with pytest.raises(RequestError, match="scale is 2, this bundle has 4"):
            upscaler(images, scale=2)


def test_jobs_are_untouched_by_what_no_row_names(photos: Path, bundle: Path) -> None:
    assert len(plan_jobs((str(photos),), photos.parent / "out")) == len(PICTURES)
    found = run(bundle, photos, "input\n", negative_prompt="", prompt="")
    for name, pixels in PICTURES.items():
        np.testing.assert_array_equal(found[name], enlarged(pixels))
