"""`s3diff-export evaluate`: what counts as met on made-up figures, and one whole run on a tiny network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.training.small import random_photograph
from tests.training.tiny_runs import any_lpips

from s3diff_export.cli import cli, run
from s3diff_training import evaluate
from s3diff_training.data import save_image
from s3diff_training.evaluate import NOISE_SCORES, Evaluation, Scores
from s3diff_training.evaluate_command import as_markdown
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.train.validation import ValidationScores


def scores(psnr: float, lpips: float, bicubic_psnr: float, bicubic_lpips: float) -> Scores:
    return Scores(
        ValidationScores(psnr, 0.75, lpips, 18), ValidationScores(bicubic_psnr, 0.7, bicubic_lpips, 18)
    )


GOOD = Evaluation(
    held_out=scores(25.5, 0.39, 25.4, 0.65),
    pairs=scores(26.5, 0.3, 27.4, 0.45),
    grid={4: 0.5, 8: 1.5},
    bicubic_grid={4: 0.9, 8: 0.4},
    control={0.0: 3.0, 0.5: 2.0, 1.0: 0.1},
    spearman={"noise": 0.85, "blur": 0.6},
    lpips_weights="LPIPS of nowhere",
)


def missed(evaluation: Evaluation) -> list[str]:
    return [target.name for target in evaluation.targets() if not target.passed]


def columns(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without its two heading lines."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


# --- what is met ----------------------------------------------------------------------------------


def test_a_good_model_meets_every_target() -> None:
    assert missed(GOOD) == []
    assert len(GOOD.targets()) == 9


@pytest.mark.parametrize(
    ("worse", "name"),
    [
        ({"held_out": scores(25.3, 0.39, 25.4, 0.65)}, "held-out PSNR-Y"),
        ({"held_out": scores(25.5, 0.43, 25.4, 0.65)}, "held-out LPIPS"),
        ({"pairs": scores(26.5, 0.34, 27.4, 0.45)}, "real pairs: LPIPS"),
        ({"pairs": scores(25.9, 0.3, 27.4, 0.45)}, "real pairs: PSNR-Y"),
        ({"grid": {4: 1.51, 8: 1.0}}, "grid of period 4"),
        ({"control": {0.0: 3.0, 0.5: 3.1, 1.0: 0.1}}, "fine detail"),
        ({"control": {0.0: 3.0, 0.5: 2.0, 1.0: 2.0}}, "fine detail"),
        ({"spearman": {"noise": 0.79, "blur": 0.6}}, "Spearman, noise"),
        ({"spearman": {"noise": 0.85, "blur": 0.59}}, "Spearman, blur"),
        ({"spearman": {"noise": float("nan"), "blur": 0.6}}, "Spearman, noise"),
    ],
)
def test_each_figure_can_miss_its_target_alone(worse: dict[str, Any], name: str) -> None:
    (only,) = missed(replace(GOOD, **worse))
    assert only.startswith(name)


def test_without_real_pairs_there_are_no_targets_for_them() -> None:
    names = [target.name for target in replace(GOOD, pairs=None).targets()]
    assert len(names) == 7
    assert not [name for name in names if "pairs" in name]


def test_scores_without_lpips_have_no_ratio() -> None:
    bare = ValidationScores(25.0, 0.7, None, 1)
    with pytest.raises(ValueError, match="without LPIPS"):
        _ = Scores(bare, bare).lpips_ratio


# --- what is written ------------------------------------------------------------------------------


def test_json_holds_every_figure_and_target() -> None:
    content = json.loads(json.dumps(GOOD.to_dict()))
    assert content["held_out"]["ours"] == {"psnr_y": 25.5, "ssim_y": 0.75, "lpips": 0.39, "count": 18}
    assert content["pairs"]["bicubic"]["lpips"] == 0.45
    assert content["grid"] == {"4": 0.5, "8": 1.5}
    assert content["control"] == {"0.0": 3.0, "0.5": 2.0, "1.0": 0.1}
    assert [target["passed"] for target in content["targets"]] == [True] * 9


def test_markdown_has_two_tables_and_says_what_they_are() -> None:
    measured, targets, text = as_markdown(replace(GOOD, grid={4: 1.6, 8: 1.0})).split("\n\n")
    assert columns(measured) == [
        ["held-out, degraded (18)", "ours", "25.50", "0.7500", "0.3900", "0.600"],
        ["held-out, degraded (18)", "bicubic", "25.40", "0.7000", "0.6500", ""],
        ["real pairs (18)", "ours", "26.50", "0.7500", "0.3000", "0.667"],
        ["real pairs (18)", "bicubic", "27.40", "0.7000", "0.4500", ""],
    ]
    verdicts = {row[0]: row[3] for row in columns(targets)}
    assert verdicts["grid of period 4, at most"] == "MISSED"
    assert list(verdicts.values()).count("met") == 8
    assert "LPIPS of nowhere" in text
    assert "3.00 at 0.0, 2.00 at 0.5, 0.10 at 1.0" in text


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images, few of them, and no published weights."""
    for name, value in {"SEEDS": (0, 1), "_SIZE": 64, "_CROPS": 4, "_FLAT_FRACTION": 1.0}.items():
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr(LPIPS, "load", lambda net, weights: any_lpips())


@pytest.mark.usefixtures("small_sizes")
def test_the_command_measures_and_writes_everything(
    sd_base_folder: Path,
    native_file: Path,
    photograph_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, side in (("LR", 16), ("HR", 64)):
        (tmp_path / name).mkdir()
        save_image(random_photograph(1, side, side)[0], tmp_path / name / "pair.png")
    options: dict[str, Path] = {
        "--base": sd_base_folder,
        "--checkpoint": native_file,
        "--held-out": photograph_folder,
        "--lr": tmp_path / "LR",
        "--hr": tmp_path / "HR",
        "--output": tmp_path / "figures.json",
        "--markdown": tmp_path / "figures.md",
        "--picture": tmp_path / "sheet.png",
    }
    assert run(cli, ["evaluate", *(str(word) for option in options.items() for word in option)]) == 0

    figures = json.loads((tmp_path / "figures.json").read_text())
    counts = [figures[part][who]["count"] for part in ("held_out", "pairs") for who in ("ours", "bicubic")]
    assert counts == [4, 4, 1, 1]
    assert figures["held_out"]["ours"] != figures["held_out"]["bicubic"]
    assert figures["lpips_weights"] == "random"
    assert list(figures["control"]) == [str(noise) for noise in NOISE_SCORES]
    assert len(set(figures["control"].values())) == len(NOISE_SCORES)  # the score set by hand is heard
    assert figures["grid"] != figures["bicubic_grid"]
    assert set(figures["spearman"]) == {"noise", "blur"}

    psnr = f"{figures['held_out']['ours']['psnr_y']:.2f}"
    assert psnr in (tmp_path / "figures.md").read_text()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 4 * 64
        assert sheet.height >= 2 * 64
    captured = capsys.readouterr()
    assert psnr in captured.out
    assert "held-out photographs: 4 images" in captured.err
    assert "Loading weights" not in captured.err


@pytest.mark.usefixtures("small_sizes")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no weights: pass --base and --checkpoint, or --demo"),
        (["--base", "b"], "no weights: pass --base and --checkpoint"),
        (["--demo", "--base", "b"], "--demo brings its own weights"),
        (["--demo", "--lr", "low"], "pass --lr and --hr, or neither"),
        (["--demo", "--lr", "low", "--hr", "high"], "low is not a folder"),
        (["--demo", "--device", "abacus"], "device abacus cannot be used"),
    ],
)
def test_wrong_requests_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["evaluate", "--held-out", str(tmp_path), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
