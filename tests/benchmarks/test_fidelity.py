"""`bench fidelity` where the answer is known: a fake network that moves the brightness by the scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.benchmarks.pictures import Pixels, noise, shifting_bundle, write_folder
from tests.runtime.fake_bundle import BINS, enlarged, expected_shift
from tests.runtime.fake_engines import add_engines

from s3diff_benchmarks.methods import Input, Upscaled
from s3diff_benchmarks.pictures import fidelity
from s3diff_benchmarks.pictures.fidelity import (
    FidelityRequest,
    Trial,
    compare_bins,
    measure_fidelity,
    nearest_centre,
)
from s3diff_benchmarks.pictures.pixels import differences
from s3diff_benchmarks.report.plots import series_of
from s3diff_export.cli import cli, run
from s3diff_runtime.errors import RequestError
from s3diff_training.weights import ModelSource


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """PyTorch is stood in for by the formula of the fake bundle; returns the scores it was called with."""
    calls = []

    def restore(inputs: Sequence[Input], noise: float, blur: float) -> list[Upscaled]:
        calls.append((noise, blur))
        return [Upscaled(enlarged(each.pixels, expected_shift(noise, blur))) for each in inputs]

    monkeypatch.setattr("s3diff_benchmarks.pytorch_method.exact", lambda network: restore)
    return calls


def request(tmp_path: Path, *modes: Any) -> FidelityRequest:  # noqa: ANN401 - modes of LoRA
    bundles = [shifting_bundle(tmp_path / f"{mode}.bundle", mode) for mode in modes]
    return FidelityRequest(bundles[0], vs=tuple(bundles[1:]), quick=True)


def rows(findings: Any, name: str) -> list[dict[str, Any]]:  # noqa: ANN401
    table = next(table for table in findings.tables if table.name == name)
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


# --- figures --------------------------------------------------------------------------------------


def test_difference_of_known_images() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 200, np.uint8)
    near = black.copy()
    near[0, 0, 0] = 12
    root, psnr, worst, largest = differences([(black, grey), (near, black), (black, black)])
    assert root == pytest.approx(np.sqrt(40003 / 3))
    assert psnr == pytest.approx(10 * np.log10(255**2 / (40003 / 3)))
    assert worst == pytest.approx(10 * np.log10(255**2 / 40000))
    assert largest == 200
    assert differences([(black, black)]) == (0.0, None, None, 0)


@given(st.floats(0, 1), st.integers(1, 12))
def test_nearest_centre_is_the_nearest(score: float, side: int) -> None:
    centres = [(place + 0.5) / side for place in range(side)]
    found = nearest_centre(score, side)
    assert found in centres
    assert abs(found - score) == pytest.approx(min(abs(centre - score) for centre in centres), abs=1e-12)


def test_bins_are_as_far_as_their_centres() -> None:
    """On a network whose pixels are 100 times the noise score, a bin is wrong by 100 times its distance."""

    def result(trial: Trial) -> Pixels:
        return np.full((2, 2, 3), round(100 * trial.noise), np.uint8)

    trials = [Trial(0, 0.1, 0.5), Trial(0, 0.8, 0.5)]
    found = compare_bins(result, trials).rows
    assert [row[:2] for row in found] == [(f"{side}×{side}", side**2) for side in (1, 2, 3, 4, 6)]
    assert found[0][2] == pytest.approx(np.sqrt((40**2 + 30**2) / 2))
    assert found[1][2] == pytest.approx(np.sqrt((15**2 + 5**2) / 2))
    assert found[0][-1] == 40


# --- the whole measurement ------------------------------------------------------------------------


def test_exact_modes_differ_by_rounding_and_bins_by_their_distance(
    tmp_path: Path, exact: list[tuple[float, float]]
) -> None:
    findings = measure_fidelity(request(tmp_path, "dynamic", "fused", "merged"), [], SimpleNamespace())  # type: ignore[arg-type]
    found = rows(findings, "bundles")
    assert [row["engine"] for row in found] == ["openvino", "onnx"] * 3
    dynamic, fused, merged = (row for row in found if row["engine"] == "onnx")
    for row in (dynamic, fused):
        assert row["largest difference"] <= 1 and row["error"] < 0.2
    assert (merged["bins"], merged["mode"], merged["engine"]) == (9, "merged", "onnx")
    points = {(noise, blur) for noise, blur in exact if (noise, blur) not in centres()}
    assert len(points) == 4
    wrong = [255 * (expected_shift(*nearest_bin(*point)) - expected_shift(*point)) for point in points]
    assert merged["error"] == pytest.approx(np.sqrt(np.mean(np.square(wrong))), abs=0.5)
    assert merged["largest difference"] == pytest.approx(max(map(abs, wrong)), abs=1)
    assert [row["bins"] for row in rows(findings, "bins")] == [1, 4, 9, 16, 36]


def centres() -> set[tuple[float, float]]:
    """Scores that only the bins ask for."""
    found = set()
    for side in fidelity.BIN_SIDES:
        axis = [(place + 0.5) / side for place in range(side)]
        found |= {(noise, blur) for noise in axis for blur in axis}
    return found


def nearest_bin(noise: float, blur: float) -> tuple[float, float]:
    found = min(BINS, key=lambda bin: (bin.noise - noise) ** 2 + (bin.blur - blur) ** 2)
    return found.noise, found.blur


def test_degradations_are_spread_evenly_and_the_same_for_a_seed(
    tmp_path: Path, exact: list[tuple[float, float]]
) -> None:
    asked = FidelityRequest(shifting_bundle(tmp_path / "a.bundle"), seed=5)
    points = fidelity._points(asked)
    assert len(points) == 16
    assert {(int(4 * noise), int(4 * blur)) for noise, blur in points} == {
        (row, column) for row in range(4) for column in range(4)
    }
    assert fidelity._points(asked) == points
    assert fidelity._points(FidelityRequest(asked.bundle, seed=6)) != points


def test_nothing_is_computed_twice_in_pytorch(tmp_path: Path, exact: list[tuple[float, float]]) -> None:
    image = noise(20, 20)
    measure_fidelity(request(tmp_path, "dynamic", "merged"), [image], SimpleNamespace())  # type: ignore[arg-type]
    assert len(exact) == len(set(exact))


def test_curves_are_drawn_of_bins_precision_and_tiles(
    tmp_path: Path, exact: list[tuple[float, float]]
) -> None:
    findings = measure_fidelity(request(tmp_path, "dynamic", "merged"), [], SimpleNamespace())  # type: ignore[arg-type]
    tables = {table.name: table for table in findings.tables}
    plots = {plot.name: series_of(plot, tables) for plot in findings.plots}
    assert list(plots) == ["bins", "precision", "tiles"]
    assert list(plots["bins"][0].x) == [1, 4, 9, 16, 36]
    precisions = {series.name: series.x for series in plots["precision"]}
    assert set(precisions) == {
        f"{bundle}, {engine}" for bundle in ("dynamic", "merged, bins 9") for engine in ("openvino", "onnx")
    }
    assert all((x == ("fp32",)) == name.endswith("onnx") for name, x in precisions.items())
    assert list(plots["tiles"][0].x) == [0, 8, 16]


def test_tiles_of_a_network_without_surroundings_make_no_difference(tmp_path: Path) -> None:
    findings = measure_fidelity(request(tmp_path, "dynamic"), [noise(90, 90)], None)
    assert [table.name for table in findings.tables] == ["tiles"]
    for row in rows(findings, "tiles"):
        assert row["largest difference"] == 0 and row["PSNR"] is None
    assert findings.notes == (fidelity.NO_WEIGHTS,)


def test_engines_that_do_not_run_here_are_told(tmp_path: Path, exact: list[tuple[float, float]]) -> None:
    asked = request(tmp_path, "dynamic", "fused")
    add_engines(asked.vs[0])
    findings = measure_fidelity(asked, [], SimpleNamespace())  # type: ignore[arg-type]
    found = [(row["bundle"], row["engine"]) for row in rows(findings, "bundles")]
    assert found == [(mode, engine) for mode in ("dynamic", "fused") for engine in ("openvino", "onnx")]
    assert any(note.startswith("fused was not run with tensorrt: ") for note in findings.notes)


def test_a_bundle_that_runs_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="tpu"):
        measure_fidelity(replace(request(tmp_path, "dynamic"), device="tpu"), [], None)


# --- the command ----------------------------------------------------------------------------------


def test_command_takes_images_and_writes_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: list[tuple[float, float]]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ModelSource, "load_s3diff", lambda *_: SimpleNamespace(to=lambda device: ()))
    shifting_bundle(tmp_path / "a.bundle")
    write_folder(tmp_path, {"photo.png": noise(40, 50)})
    (tmp_path / "c.safetensors").write_bytes(b"weights")
    weights = ["--base", "base", "--checkpoint", "c.safetensors"]
    assert (
        run(cli, ["bench", "fidelity", "a.bundle", *weights, "--image", "photo.png", "--quick", "-o", "out"])
        == 0
    )
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out" / "plots").iterdir()) == [
        "bins.png",
        "precision.png",
        "tiles.png",
    ]
    assert found["options"]["images"] == ["photo.png"]
    assert not any("drawn" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "none"),
        (["a.bundle", "--image", "none.png"], "none.png"),
        (["a.bundle", "--checkpoint", "none"], "--base and --checkpoint go together"),
        (
            ["a.bundle", "--base", "b", "--checkpoint", "none"],
            "none does not exist; expected a file of weights",
        ),
        (["a.bundle", "--device", "tpu"], "tpu"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shifting_bundle(tmp_path / "a.bundle")
    assert run(cli, ["bench", "fidelity", "--quick", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error
