"""Metrics against independent implementations, known figures, and synthetic spectra."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from s3diff_runtime.vocabulary import Pixels
from s3diff_training import metrics

PAIRS = (
    Path(os.environ.get("S3DIFF_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    / "data"
    / "realsr20"
)


def picture(seed: int, height: int = 96, width: int = 80) -> Pixels:
    """A colourful image with both smooth areas and texture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [100 + 80 * np.sin(y / (5 + c) + seed) * np.cos(x / (9 - c)) for c in range(3)]
    return np.clip(np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def luma_wave(frequency: float, amplitude: float = 20.0, side: int = 64) -> metrics.FloatImage:
    line = amplitude * np.cos(2 * np.pi * frequency * np.arange(side))
    return np.tile(line, (side, 1))


def grid_ratios(*stacks: metrics.FloatImage) -> dict[int, float]:
    spectrum = metrics.GridSpectrum()
    for stack in stacks:
        spectrum.add(stack)
    return spectrum.ratios()


def test_luma_is_video_range_bt601() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(metrics.luma(colours)[0], [16, 235, 81.481, 144.553, 40.966], atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_agree_with_scikit_image(seed: int) -> None:
    color = pytest.importorskip("skimage.color")
    reference = pytest.importorskip("skimage.metrics")
    truth, image = picture(seed), picture(seed + 10)
    y_truth, y_image = (color.rgb2ycbcr(value)[..., 0] for value in (truth, image))
    psnr = reference.peak_signal_noise_ratio(y_truth, y_image, data_range=255)
    ssim = reference.structural_similarity(
        y_truth, y_image, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert metrics.psnr_y(image, truth) == pytest.approx(
        psnr, abs=1e-3
    )  # scikit-image rounds its coefficients
    assert metrics.ssim_y(image, truth) == pytest.approx(ssim, abs=1e-5)


@pytest.mark.skipif(not PAIRS.is_dir(), reason="the RealSR pairs are absent")
def test_bicubic_reproduces_the_known_figures_of_realsr20() -> None:
    scores = []
    for path in sorted((PAIRS / "HR").glob("*.png")):
        truth = np.array(Image.open(path).convert("RGB"))
        low = torch.from_numpy(np.array(Image.open(PAIRS / "LR" / path.name).convert("RGB")))
        up = functional.interpolate(
            low.permute(2, 0, 1)[None].float(), scale_factor=4, mode="bicubic", align_corners=False
        )
        image = up.clamp(0, 255).round()[0].permute(1, 2, 0).to(torch.uint8).numpy()
        scores.append((metrics.psnr_y(image, truth), metrics.ssim_y(image, truth)))
    psnr, ssim = np.mean(scores, axis=0)
    assert len(scores) == 20
    assert psnr == pytest.approx(27.35, abs=0.01)
    assert ssim == pytest.approx(0.773, abs=0.001)


def test_equal_images_score_perfectly_and_worse_ones_lower() -> None:
    truth = picture(0)
    assert metrics.psnr_y(truth, truth) == float("inf")
    assert metrics.ssim_y(truth, truth) == pytest.approx(1.0, abs=1e-12)
    rng = np.random.default_rng(5)
    noisy = [np.clip(truth + rng.normal(0, s, truth.shape), 0, 255).astype(np.uint8) for s in (4, 16)]
    assert metrics.psnr_y(noisy[0], truth) > metrics.psnr_y(noisy[1], truth)
    assert metrics.ssim_y(noisy[0], truth) > metrics.ssim_y(noisy[1], truth)


@pytest.mark.parametrize("score", [metrics.psnr_y, metrics.ssim_y])
def test_scores_refuse_what_they_would_misread(score: Callable[[object, object], float]) -> None:
    truth = picture(0)
    with pytest.raises(ValueError, match="differ in shape"):
        score(truth[:-1], truth)
    with pytest.raises(ValueError, match="uint8"):
        score(truth / 255.0, truth / 255.0)
    with pytest.raises(ValueError, match="uint8"):
        score(truth[..., 0], truth[..., 0])
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim_y(truth[:10], truth[:10])


@pytest.mark.parametrize("period", [4, 8])
@pytest.mark.parametrize("kind", ["columns", "rows", "dots", "checkers"])
def test_a_faint_grid_stands_out_at_its_own_period(period: int, kind: str) -> None:
    rng = np.random.default_rng(period)
    line = np.cos(2 * np.pi * np.arange(64) / period)
    flat = np.ones(64)
    grid = {
        "columns": np.outer(flat, line),
        "rows": np.outer(line, flat),
        "dots": np.outer(line + 1, line + 1) / 2,
        "checkers": 2 * np.outer(line, line),
    }[kind]
    patches = rng.normal(0, 2.0, (6, 64, 64)) + np.linspace(0, 30, 64)
    clean, marked = grid_ratios(patches), grid_ratios(patches + 0.6 * grid)
    other = 12 - period
    assert all(0.5 < ratio < 1.5 for ratio in clean.values())
    assert marked[period] > 4 * clean[period]
    assert marked[other] == pytest.approx(clean[other], rel=0.35)


def test_waves_of_other_periods_are_no_grid() -> None:
    noise = np.random.default_rng(0).normal(0, 2.0, (64, 64))
    for frequency in (5 / 64, 12 / 64, 20 / 64):
        ratios = grid_ratios(noise[None] + luma_wave(frequency, 1.0))
        assert all(ratio < 2 for ratio in ratios.values())


def test_grid_ratios_are_of_all_patches_however_they_come_and_1_on_constants() -> None:
    assert grid_ratios(np.full((2, 64, 64), 40.0)) == {4: pytest.approx(1.0), 8: pytest.approx(1.0)}
    patches = np.random.default_rng(1).normal(0, 2.0, (5, 64, 64))
    assert grid_ratios(patches) == pytest.approx(grid_ratios(patches[:2], patches[:0], patches[2:]))
    assert grid_ratios() == {}
    for shape in ((63, 64), (1, 64, 65), (1, 1, 64, 64)):
        with pytest.raises(ValueError, match=r"\[N, 64, 64\]"):
            grid_ratios(np.ones(shape))


@pytest.mark.parametrize(
    ("frequency", "counts"), [(10 / 64, False), (14 / 64, False), (18 / 64, True), (0.45, True)]
)
def test_high_frequency_energy_measures_waves_above_half_nyquist(frequency: float, counts: bool) -> None:
    grey = np.clip(np.rint(128 + luma_wave(frequency, 50.0)), 0, 255).astype(np.uint8)
    energy = metrics.high_frequency_energy(grey[..., None].repeat(3, axis=2))
    amplitude = 50.0 * 219 / 255  # video range
    assert energy == pytest.approx(amplitude**2 / 2 if counts else 0.0, abs=0.02 * amplitude**2)


def test_blur_lowers_high_frequency_energy() -> None:
    image = picture(0)
    blurred = ((image[:-1].astype(int) + image[1:]) // 2).astype(np.uint8)
    assert metrics.high_frequency_energy(blurred) < 0.8 * metrics.high_frequency_energy(image)


def test_flat_patches_are_the_flattest_tiles_in_order() -> None:
    rng = np.random.default_rng(0)
    strength = np.array([[9, 1, 5], [3, 7, 0]])
    blocks = strength.repeat(64, axis=0).repeat(64, axis=1)
    grey = np.clip(128 + blocks * rng.normal(0, 1, blocks.shape), 0, 255).astype(np.uint8)
    image = np.pad(grey, ((0, 10), (0, 20)))[..., None].repeat(3, axis=2)
    windows = metrics.flat_patches(image, 0.5)
    assert [strength[rows.start // 64, columns.start // 64] for rows, columns in windows] == [0, 1, 3]
    assert all(image[window].shape == (64, 64, 3) for window in windows)
    assert len(metrics.flat_patches(image, 0.01)) == 1 and len(metrics.flat_patches(image, 1.0)) == 6
    for fraction, picture_part in ((0.0, image), (1.1, image), (0.5, image[:63])):
        with pytest.raises(ValueError, match="fraction in"):
            metrics.flat_patches(picture_part, fraction)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_spearman_is_the_correlation_of_ranks_ties_included(pairs: list[tuple[int, int]]) -> None:
    a, b = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert np.isnan(metrics.spearman(a, b))
    else:
        ranks = np.array([[sum((x > y) + (x >= y) for y in values) for x in values] for values in (a, b)])
        assert metrics.spearman(a, b) == pytest.approx(np.corrcoef(ranks)[0, 1], abs=1e-12)


def test_spearman_sees_order_only_and_refuses_unpaired_values() -> None:
    assert metrics.spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1.0)
    assert metrics.spearman([1, 2, 3, 4], [0, -1, -5, -6]) == pytest.approx(-1.0)
    for a, b in (([1.0], [2.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])):
        with pytest.raises(ValueError, match="one length"):
            metrics.spearman(a, b)
