"""`bench quality` from end to end on a fake bundle: every row, the files it writes, and bad requests."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from tests.benchmarks.pictures import Pixels, noise, shifting_bundle, write_folder
from tests.benchmarks.test_scores import forbid_lpips
from tests.runtime.fake_bundle import enlarged, estimate_of, expected_shift

from s3diff_benchmarks.methods import Input, Upscaled, bundle_names
from s3diff_benchmarks.pictures.quality import QualityRequest
from s3diff_export.cli import cli, run
from s3diff_runtime.errors import RequestError
from s3diff_training.metrics import psnr_y
from s3diff_training.weights import ModelSource

NAMES = ("a", "b", "c", "d", "e")
LR = {f"{name}.png": noise(10, 12, seed) for seed, name in enumerate(NAMES)}


def as_restored(lr: Pixels) -> Pixels:
    """What the fake bundle makes of an image."""
    estimate = estimate_of(lr)
    return enlarged(lr, expected_shift(estimate["noise"], estimate["blur"]))


def changed(lr: Pixels, amount: int) -> Pixels:
    """The fake bundle's result, made brighter."""
    return np.clip(as_restored(lr).astype(int) + amount, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`s3.bundle`, `lr`, `hr` (the bundle's results, noisier from image to image), and a peer's outputs."""
    monkeypatch.chdir(tmp_path)
    forbid_lpips(monkeypatch)
    shifting_bundle(tmp_path / "s3.bundle")
    write_folder(tmp_path / "lr", LR)
    truths = {}
    for number, (name, lr) in enumerate(LR.items(), start=1):
        grain = np.random.default_rng(number).normal(0, 2 * number, (40, 48, 3))
        truths[name] = np.clip(as_restored(lr) + grain, 0, 255).astype(np.uint8)
    write_folder(tmp_path / "hr", truths)
    write_folder(tmp_path / "peer", {name: changed(lr, 9) for name, lr in LR.items()})
    times = {"machine": "a peer's CPU", "software": "its engine 2", "seconds": dict.fromkeys(NAMES, 1.25)}
    (tmp_path / "peer" / "seconds.json").write_text(json.dumps(times))
    return tmp_path


def bench(*arguments: str) -> int:
    return run(cli, ["bench", "quality", "s3.bundle", "--lr", "lr", *arguments])


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def table(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """Rows by method, cells by column."""
    found = next(part for part in report(folder)["tables"] if part["name"] == name)
    names = [column["name"] for column in found["columns"]]
    return {row[0]: dict(zip(names, row, strict=True)) for row in found["rows"]}


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "per-image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- a whole run ----------------------------------------------------------------------------------


def test_every_row_is_measured_and_written(folder: Path) -> None:
    (folder / "other").mkdir()
    shifting_bundle(folder / "other" / "merged.bundle", "merged")
    options = ("--vs", "other/merged.bundle", "--also", "peer=peer", "--dataset", "realsr", "--html")
    assert bench("--hr", "hr", *options, "-o", "out") == 0
    out = folder / "out"
    rows = table(out, "quality")
    assert list(rows) == ["bicubic", "s3", "merged", "peer"]
    assert {row["images"] for row in rows.values()} == {5}
    assert rows["bicubic"]["time"] is None
    assert rows["peer"]["time"] == 1.25
    assert rows["s3"]["time"] > 0
    assert rows["s3"]["PSNR-Y"] > rows["peer"]["PSNR-Y"] > 20
    published = table(out, "published")
    assert published["S3Diff-1"]["LPIPS"] == 0.2699
    notes = " ".join(report(out)["notes"])
    assert "the times of peer were taken by its own run with its engine 2, on a peer's CPU" in notes
    assert "LPIPS was not measured" in notes and "pip install pyiqa" in notes
    for name in ("report.md", "report.html"):  # an interval stands in its mean's cell
        text = (out / name).read_text().replace("\\", "")
        row = rows["s3"]
        assert f"{row['PSNR-Y']:.2f} [{row['PSNR-Y low']:.2f}, {row['PSNR-Y high']:.2f}]" in text
        assert "PSNR-Y low" not in text


def test_figures_are_means_over_the_images_with_students_intervals(folder: Path) -> None:
    assert bench("--hr", "hr", "--also", "peer=peer", "-o", "out") == 0
    truths = [np.asarray(Image.open(folder / "hr" / name)) for name in LR]
    pairs = list(zip(LR.values(), truths, strict=True))
    values = {
        "s3": np.array([psnr_y(as_restored(lr), truth) for lr, truth in pairs]),
        "peer": np.array([psnr_y(changed(lr, 9), truth) for lr, truth in pairs]),
    }

    def check(row: dict[str, Any], found: np.ndarray) -> None:
        low, high = stats.t.interval(0.95, 4, found.mean(), stats.sem(found))
        figures = [row[name] for name in ("PSNR-Y", "PSNR-Y low", "PSNR-Y high")]
        assert figures == pytest.approx([found.mean(), low, high], abs=0.02)  # fp32 rounds halves either way

    rows, differences = table(folder / "out", "quality"), table(folder / "out", "differences")
    check(rows["s3"], values["s3"])
    check(rows["peer"], values["peer"])
    assert list(differences) == ["bicubic", "peer"]
    check(differences["peer"], values["peer"] - values["s3"])


def test_csv_has_every_image_of_every_method(folder: Path) -> None:
    assert bench("--hr", "hr", "--also", "peer=peer", "-o", "out") == 0
    found = lines(folder / "out")
    assert [(line["image"], line["method"]) for line in found] == [
        (name, method) for name in NAMES for method in ("bicubic", "s3", "peer")
    ]
    ours = next(line for line in found if (line["image"], line["method"]) == ("c", "s3"))
    estimate = estimate_of(LR["c.png"])
    assert float(ours["noise"]) == pytest.approx(estimate["noise"], abs=1e-5)
    assert float(ours["blur"]) == pytest.approx(estimate["blur"], abs=1e-5)
    assert ours["bin"] == ""
    truth = np.asarray(Image.open(folder / "hr" / "c.png"))
    assert float(ours["PSNR-Y"]) == pytest.approx(psnr_y(as_restored(LR["c.png"]), truth), abs=0.02)


def test_pictures_are_the_results_of_the_first_four(folder: Path) -> None:
    assert bench("-o", "out") == 0
    pictures = folder / "out" / "pictures"
    assert sorted(path.name for path in pictures.iterdir()) == [
        f"image-{number}-{kind}.png" for number in (1, 2, 3, 4) for kind in ("bicubic", "result")
    ]
    result = np.asarray(Image.open(pictures / "image-2-result.png")).astype(int)
    assert np.abs(result - as_restored(LR["b.png"])).max() <= 1
    assert [part["title"] for part in report(folder / "out")["pictures"]][1] == "b: bicubic, and s3"


def test_without_truths_and_limited(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--limit", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    quality = found["tables"][0]
    names = [column["name"] for column in quality["columns"]]
    assert "PSNR-Y" not in names and "fine detail" in names
    row = dict(zip(names, quality["rows"][1], strict=True))
    assert row["images"] == 1
    assert row["fine detail"] > 0 and row["fine detail low"] is None
    assert found["plots"] == []


def test_a_perfect_method_has_no_mean_of_psnr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--hr", "hr", "--also", "truth=hr", "-o", "out") == 0
    assert table(folder / "out", "quality")["truth"]["PSNR-Y"] is None
    assert table(folder / "out", "quality")["truth"]["SSIM-Y"] == pytest.approx(1)
    assert table(folder / "out", "differences")["truth"]["PSNR-Y"] is None
    assert "[" in capsys.readouterr().out  # intervals, on the terminal


def test_pytorch_is_a_row_and_other_weights_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is stood in for; what it applies and makes is in the table and the CSV."""
    network = SimpleNamespace(estimator=None)
    monkeypatch.setattr(ModelSource, "load", lambda self: SimpleNamespace(to=lambda device: network))

    class Network:
        name = "PyTorch fp32"

        def __call__(self, inputs: Sequence[Input]) -> list[Upscaled]:
            scores = {"noise": 0.25, "blur": 0.75}
            return [Upscaled(changed(each.pixels, 1), {"unet": 0.5}, scores) for each in inputs]

    monkeypatch.setattr("s3diff_benchmarks.pytorch_method.exact", lambda network: Network())
    checkpoint = folder / "own.safetensors"
    checkpoint.write_bytes(b"weights")
    assert bench("--hr", "hr", "--base", "base", "--checkpoint", str(checkpoint), "-o", "out") == 0
    assert table(folder / "out", "quality")["PyTorch fp32"]["time"] == 0.5
    line = next(line for line in lines(folder / "out") if line["method"] == "PyTorch fp32")
    assert (line["noise"], line["blur"]) == ("0.25", "0.75")
    notes = report(folder / "out")["notes"]
    assert "s3.bundle was built from another checkpoint than PyTorch ran with" in notes


# --- bad requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hr", "none"], "none is not a folder; expected a folder of images"),
        (["--also", "peer"], "--also peer: expected NAME=DIR, such as realesrgan=outputs"),
        (["--also", "=peer"], "--also =peer: expected NAME=DIR"),
        (["--also", "peer=none"], "none is not a folder"),
        (["--also", "bicubic=peer"], "two rows would be called bicubic; give --also or --run another NAME"),
        (["--vs", "s3.bundle"], "two rows would be called s3.bundle"),
        (["--vs", "lr"], "lr"),
        (
            ["--dataset", "Set5"],
            "no scores for 'Set5'; it has them for RealSR, DRealSR",
        ),
        (["--limit", "0"], "limit is 0, expected 1 or more"),
        (["--engine", "none"], "none"),
        (["--base", "base"], "--base and --checkpoint go together"),
        (["--demo", "--base", "base"], "--demo brings its own weights"),
        (["--lpips-weights", "none", "--hr", "hr"], "no weights of alex"),
        (["--html"], "name one with --output"),
    ],
)
def test_bad_requests_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert bench(*arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (folder / "out").exists()


def test_a_folder_in_the_way_is_noticed_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("-o", "lr") == 2
    assert "lr exists and is no such report" in capsys.readouterr().err
    assert sorted(path.name for path in (folder / "lr").iterdir()) == sorted(LR)


def test_bundles_have_short_names_unless_these_are_alike() -> None:
    paths = [Path("/x/one.bundle"), Path("/x/two")]
    assert bundle_names(paths) == ["one", "two"]
    assert bundle_names([*paths, Path("/y/two.bundle")]) == ["one", "/x/two", "/y/two.bundle"]
    with pytest.raises(RequestError, match="two rows would be called one"):
        QualityRequest(paths[0], lr=Path("lr"), also=(("one", Path("outputs")),))
