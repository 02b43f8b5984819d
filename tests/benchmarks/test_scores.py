"""Scores against scikit-image and SciPy, and what is said where weights or packages are missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from tests.benchmarks.pictures import Pixels, noise, smooth

from s3diff_benchmarks.methods import Input
from s3diff_benchmarks.pictures.scores import DETAIL, Sample, Score, ScoreOptions, Scores, load_scores
from s3diff_benchmarks.pytorch_method import BicubicMethod
from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_training.losses.lpips import LPIPS

SHOWN = 3
"""Of the RealSR pairs, those that scikit-image scores here; a full table is in docs/bench-quality.md."""


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Scores:
    """The scores that need no weights."""
    forbid_lpips(monkeypatch)
    return load_scores(ScoreOptions(), truth=True)


def forbid_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(net: str, _weights: Path | None = None) -> LPIPS:
        raise RequestError(f"no weights of {net}")

    monkeypatch.setattr(LPIPS, "load", load)


def independent(result: Pixels, truth: Pixels) -> tuple[float, float]:
    """PSNR and SSIM on Y of BT.601 by scikit-image."""
    color, metrics = pytest.importorskip("skimage.color"), pytest.importorskip("skimage.metrics")
    ours, theirs = (color.rgb2ycbcr(pixels)[..., 0] for pixels in (result, truth))
    ssim = metrics.structural_similarity(
        theirs, ours, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return metrics.peak_signal_noise_ratio(theirs, ours, data_range=255), ssim


def known_bicubic(lr: Pixels) -> Pixels:
    """Bicubic ×4 with torch's kernel (a = -0.75), written out: no antialiasing, borders repeated."""

    def weight(x: np.ndarray) -> np.ndarray:
        x, a = np.abs(x), -0.75
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        return np.where(x <= 1, near, np.where(x < 2, a * (x**3 - 5 * x**2 + 8 * x - 4), 0))

    def matrix(side: int) -> np.ndarray:
        centres = (np.arange(4 * side) + 0.5) / 4 - 0.5
        columns = np.floor(centres)[:, None] + np.arange(-1, 3)
        weights, rows = weight(centres[:, None] - columns), np.zeros((4 * side, side))
        places = columns.clip(0, side - 1).astype(int)
        np.add.at(rows, (np.arange(4 * side)[:, None], places), weights)
        return rows

    height, width = (matrix(side) for side in lr.shape[:2])
    enlarged = np.einsum("ph,hqc->pqc", height, np.einsum("qw,hwc->hqc", width, lr.astype(np.float64)))
    return np.clip(enlarged, 0, 255).round().astype(np.uint8)


# --- against truths -------------------------------------------------------------------------------


def realsr_pairs(shared: Path) -> Iterator[tuple[Pixels, Pixels]]:
    folder = shared / "data" / "realsr20"
    if not folder.is_dir():
        pytest.skip(f"no RealSR pairs at {folder}")
    for path in sorted((folder / "LR").glob("*.png"))[:SHOWN]:
        yield open_photograph(path).pixels, open_photograph(folder / "HR" / path.name).pixels


def agree(scores: Scores, lr: Pixels, truth: Pixels) -> None:
    restored = BicubicMethod()([Input(lr)])[0].pixels
    expected = known_bicubic(lr)
    assert np.abs(restored.astype(int) - expected).max() <= 1  # where halves are rounded
    psnr, ssim = independent(expected, truth)
    measured = scores.measure(Sample(restored, lr, truth))
    assert measured["PSNR-Y"] == pytest.approx(psnr, abs=2e-3)
    assert measured["SSIM-Y"] == pytest.approx(ssim, abs=2e-5)


def test_bicubic_of_realsr_scores_as_scikit_image_says(plain: Scores, shared: Path) -> None:
    pairs = list(realsr_pairs(shared))
    assert len(pairs) == SHOWN
    for lr, truth in pairs:
        agree(plain, lr, truth)


@pytest.mark.parametrize(("height", "width"), [(24, 24), (17, 40)])
def test_bicubic_of_drawn_pictures_scores_as_scikit_image_says(
    plain: Scores, height: int, width: int
) -> None:
    truth = smooth(4 * height, 4 * width, seed=height)
    lr = np.array(Image.fromarray(truth).resize((width, height), Image.Resampling.BOX))
    agree(plain, lr, truth)


def test_learned_scores_are_taken_of_the_right_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS gets [-1, 1]: the score is what the network says of that, and is small for small changes."""
    torch.manual_seed(1)
    monkeypatch.setattr(LPIPS, "load", lambda net, _weights=None: LPIPS(net))
    scores = load_scores(ScoreOptions(), truth=True)
    truth, other = smooth(64, 64, 1), smooth(64, 64, 2)
    measured = scores.measure(Sample(other, noise(16, 16), truth))
    torch.manual_seed(1)
    for net, label in (("alex", "LPIPS"), ("vgg", "LPIPS-VGG")):
        pair = [torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1 for pixels in (other, truth)]
        assert measured[label] == pytest.approx(float(LPIPS(net)(*pair)), rel=1e-4)  # type: ignore[arg-type]
    assert all(scores.measure(Sample(truth, noise(16, 16), truth))[label] == 0 for label in ("LPIPS",))


# --- alone ----------------------------------------------------------------------------------------


def test_without_truths_only_what_needs_none_is_measured() -> None:
    scores = load_scores(ScoreOptions(), truth=False)
    assert [score.label for score in scores.scores] == ["LR-PSNR-Y", DETAIL]
    assert scores.notes == ()
    assert scores.measure(Sample(noise(64, 64), noise(16, 16))).keys() == {"LR-PSNR-Y", DETAIL}


def test_lr_psnr_compares_the_input_with_the_result_made_small(plain: Scores) -> None:
    lr = np.full((16, 16, 3), 100, np.uint8)
    brighter = np.full((64, 64, 3), 110, np.uint8)
    measured = plain.measure(Sample(brighter, lr, brighter))
    assert measured["LR-PSNR-Y"] == pytest.approx(20 * np.log10(255 / (10 * 219 / 255)), abs=1e-6)
    assert measured["PSNR-Y"] == float("inf")


def test_fine_detail_falls_under_blur(plain: Scores) -> None:
    sharp = Image.fromarray(noise(64, 64, brightest=256))
    results = [np.asarray(sharp.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 0.5, 1, 2)]
    detail = [plain.measure(Sample(pixels, noise(16, 16), results[0]))[DETAIL] for pixels in results]
    assert detail == sorted(detail, reverse=True)
    assert detail[0] > 10 * detail[-1] > 0


# --- means ----------------------------------------------------------------------------------------


def scores_of(label: str) -> Scores:
    return Scores((Score(label, "higher", lambda _: 0.0),), ())


def test_intervals_are_students() -> None:
    values = np.random.default_rng(3).normal(25, 4, 12)
    mean, low, high = scores_of("a").means([{"a": float(value)} for value in values])
    expected = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(expected)


def test_one_image_has_no_interval_and_equal_images_no_mean() -> None:
    assert scores_of("a").means([{"a": 3.0}]) == (3.0, None, None)
    assert scores_of("a").means([{"a": 3.0}, {"a": float("inf")}]) == (None, None, None)
    names = [column.name for column in scores_of("a").columns()]
    assert names == ["a", "a low", "a high"]


# --- what is missing ------------------------------------------------------------------------------


def test_missing_weights_leave_a_note(plain: Scores) -> None:
    assert [score.label for score in plain.scores] == ["PSNR-Y", "SSIM-Y", "LR-PSNR-Y", DETAIL]
    assert "LPIPS was not measured: no weights of alex" in plain.notes
    assert "LPIPS-VGG was not measured: no weights of vgg" in plain.notes


def test_named_weights_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no LPIPS weights at .*nowhere"):
        load_scores(ScoreOptions(lpips_weights=tmp_path / "nowhere"), truth=True)


def test_named_weights_of_dists_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(LPIPS, "load", lambda net, _weights=None: LPIPS(net))
    with pytest.raises(RequestError, match="holds no weights of DISTS"):
        load_scores(ScoreOptions(dists_weights=tmp_path / "weights.pt"), truth=True)


def test_no_reference_scores_need_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(RequestError, match="pip install pyiqa"):
        load_scores(ScoreOptions(no_reference=True), truth=False)


def test_no_reference_scores_come_from_pyiqa(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that can load one metric: the mean of the image in [0, 1]."""

    class Mean:
        lower_better = True

        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            assert image.shape == (1, 3, 8, 12)
            return image.mean()

    def create_metric(key: str, device: str) -> Mean:
        if key != "niqe":
            raise OSError(f"cannot fetch {key}\non {device}")
        return Mean()

    monkeypatch.setitem(sys.modules, "pyiqa", SimpleNamespace(create_metric=create_metric))
    scores = load_scores(ScoreOptions(no_reference=True), truth=False)
    assert [score.label for score in scores.scores] == ["LR-PSNR-Y", DETAIL, "NIQE"]
    assert scores.scores[-1].better == "lower"
    result = noise(8, 12)
    measured = scores.scores[-1].measure(Sample(result, noise(2, 3)))
    assert measured == pytest.approx(result.mean() / 255, rel=1e-5)
    assert "MUSIQ was not measured: pyiqa cannot load musiq (cannot fetch musiq)" in scores.notes
