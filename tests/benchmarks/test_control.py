"""`bench control`: the grid of scores, its sheet and figures, and bad requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.benchmarks.pictures import noise, shifting_bundle, write_folder
from tests.benchmarks.test_scores import forbid_lpips
from tests.runtime.fake_bundle import (
    edit_manifest,
    enlarged,
    estimate_of,
    expected_shift,
    write_fake_bundle,
)

from s3diff_benchmarks.pictures import control
from s3diff_benchmarks.pictures.control import ControlRequest, measure_control
from s3diff_benchmarks.pictures.pixels import middle
from s3diff_benchmarks.pictures.scores import DETAIL, ScoreOptions, load_scores
from s3diff_benchmarks.report.plots import series_of
from s3diff_export.cli import cli, run
from s3diff_runtime.errors import RequestError

LR = noise(12, 16)
ALONE = load_scores(ScoreOptions(), truth=False)


def rows(findings: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    names = [column.name for column in findings.tables[0].columns]
    return [dict(zip(names, row, strict=True)) for row in findings.tables[0].rows]


def test_grid_has_every_pair_of_scores_and_the_estimate(tmp_path: Path) -> None:
    bundle = shifting_bundle(tmp_path / "a.bundle")
    found = rows(measure_control(ControlRequest(bundle), LR, None, ALONE))
    assert found[0]["setting"] == "as estimated"
    assert found[0]["noise"] == pytest.approx(estimate_of(LR)["noise"], abs=1e-5)
    levels = (0.0, 0.5, 1.0)
    assert [(row["noise"], row["blur"]) for row in found[1:]] == [(n, b) for n in levels for b in levels]
    assert found[2]["setting"] == "noise 0, blur 0.5"
    assert {row["bin"] for row in found} == {None}
    assert all(row[DETAIL] > 0 for row in found)


def test_sheet_shows_noise_downwards_and_blur_to_the_right(tmp_path: Path) -> None:
    bundle = shifting_bundle(tmp_path / "a.bundle")
    findings = measure_control(ControlRequest(bundle, steps=2), LR, None, ALONE)
    assert findings.images is not None
    sheet = np.asarray(findings.images["grid"]).astype(int)
    for row, noise_score in enumerate((0, 1)):
        for column, blur in enumerate((0, 1)):
            expected = enlarged(LR, expected_shift(noise_score, blur))
            top = row * (48 + control._CAPTION) + control._CAPTION
            left = control._GAP + column * (control._CAPTION_WIDTH + control._GAP)
            shown = sheet[top : top + 48, left : left + 64]
            assert np.abs(shown - expected).max() <= 1
            assert sheet[top - control._CAPTION : top, left : left + 64].min() < 128  # a caption


def test_curves_follow_the_grid(tmp_path: Path) -> None:
    bundle = shifting_bundle(tmp_path / "a.bundle")
    findings = measure_control(ControlRequest(bundle), LR, None, ALONE)
    found = rows(findings)[1:]
    drawn = series_of(findings.plots[0], {table.name: table for table in findings.tables})
    assert [series.name for series in drawn] == ["blur 0", "blur 0.5", "blur 1"]
    assert drawn[1].x == (0.0, 0.5, 1.0)
    assert drawn[1].y == tuple(row[DETAIL] for row in found if row["blur"] == 0.5)


def test_merged_bundles_say_which_bin_answered(tmp_path: Path) -> None:
    bundle = shifting_bundle(tmp_path / "a.bundle", "merged")
    findings = measure_control(ControlRequest(bundle, steps=4), LR, None, ALONE)
    found = rows(findings)
    assert {row["bin"] for row in found[1:]} == {f"n{n}-b{b}" for n in range(3) for b in range(3)}
    assert findings.notes == (
        "this bundle is merged: every setting is answered with the weights of the nearest bin, and the "
        "16 settings share 9",
    )


def test_large_results_are_cut_to_their_middle() -> None:
    pixels = noise(500, 400)
    assert (middle(pixels, control._CELL) == pixels[58:442, 8:392]).all()
    assert (middle(pixels[:50, :60], control._CELL) == pixels[:50, :60]).all()


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    forbid_lpips(monkeypatch)
    shifting_bundle(tmp_path / "a.bundle")
    truth = enlarged(LR, expected_shift(0.5, 0.0))
    return write_folder(tmp_path, {"photo.png": LR, "truth.png": truth, "small.png": noise(5, 9)})


def test_command_scores_against_a_truth(folder: Path) -> None:
    assert run(cli, ["bench", "control", "a.bundle", "photo.png", "--hr", "truth.png", "-o", "out"]) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    names = [column["name"] for column in report["tables"][0]["columns"]]
    found = {row[0]: dict(zip(names, row, strict=True)) for row in report["tables"][0]["rows"]}
    ssim = {name: row["SSIM-Y"] for name, row in found.items() if name != "as estimated"}
    assert max(ssim, key=lambda name: ssim[name]) == "noise 0.5, blur 0"
    with Image.open(folder / "out" / "pictures" / "grid.png") as sheet:
        assert sheet.width > 3 * 64
    assert (folder / "out" / "plots" / "control.png").is_file()
    assert not any("pyiqa" in note for note in report["notes"])


def test_command_draws_an_image_where_none_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["bench", "control", "a.bundle", "--steps", "2"]) == 0
    assert "noise 1, blur 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.bundle", "--steps", "1"], "steps is 1, expected from 2 to 11"),
        (["a.bundle", "--steps", "12"], "steps is 12, expected from 2 to 11"),
        (["a.bundle", "--hr", "truth.png"], "--hr is the truth of an IMAGE; name that image too"),
        (
            ["a.bundle", "photo.png", "--hr", "photo.png"],
            "HR must be 4 times as large as the image; got 16×12 and 16×12",
        ),
        (["a.bundle", "none.png"], "none.png"),
        (["none.bundle"], "none.bundle"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(cli, ["bench", "control", *arguments, "-o", "out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (folder / "out").exists()


def test_an_image_too_small_to_score_is_refused(tmp_path: Path) -> None:
    bundle = shifting_bundle(tmp_path / "a.bundle")
    with pytest.raises(RequestError, match="too small to score; expected at least 8 pixels a side"):
        measure_control(ControlRequest(bundle), noise(5, 9), noise(20, 36), ALONE)


def test_a_family_without_scores_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without_scores(content: dict[str, Any]) -> None:
        content |= {"family": "osediff", "degradation_axes": []}
        for name in ("estimator", "modulation"):
            content["stages"].pop(name)
        for stage in content["stages"].values():
            stage["inputs"] = [each for each in stage["inputs"] if "modulation" not in each["name"]]

    edit_manifest(write_fake_bundle(folder / "b.bundle", "dynamic", guidance="off"), without_scores)
    assert run(cli, ["bench", "control", "b.bundle", "photo.png"]) == 2
    assert "b.bundle restores without scores: there is nothing to set by hand" in capsys.readouterr().err
