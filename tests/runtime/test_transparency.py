"""Colours under transparency: a result on any background is the picture, drawn larger, on that background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.runtime.pictures import ALPHA, GREY, PICTURE

from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.pictures.transparency import without_hidden_colors

SIDE, SCALE = 64, 4
BACKGROUNDS = ((0, 0, 0), (255, 255, 255), (0, 128, 255))
HIDDEN = {
    "black": np.zeros((SIDE, SIDE, 3)),
    "white": np.full((SIDE, SIDE, 3), 255),
    "noise": np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)),
}


def disc(side: int, soft: bool = True) -> np.ndarray:
    """Coverage in [0, 1] of a disc in the middle."""
    fine = (np.arange(side * 8) + 0.5) / 8 - side / 2
    inside = np.hypot(fine[:, None], fine[None]) < 0.35 * side
    coverage = inside.reshape(side, 8, side, 8).mean((1, 3))
    return coverage if soft else np.round(coverage)


def pattern(side: int) -> np.ndarray:
    """The same waves at any size."""
    y, x = np.mgrid[:side, :side] * (SIDE / side)
    return np.dstack([128 + 90 * np.sin(x / 5), 128 + 90 * np.cos(y / 6), 128 + 90 * np.sin((x + y) / 7)])


def on(background: tuple[int, ...], colors: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return colors * coverage[..., None] + np.array(background) * (1 - coverage[..., None])


def bicubic(pixels: np.ndarray) -> np.ndarray:
    """Stands in for the network."""
    return np.asarray(Image.fromarray(pixels).resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("colors", ["one colour", "waves"])
def test_no_fringe_on_any_background(hidden: str, soft: bool, colors: str) -> None:
    small = pattern(SIDE) if colors == "waves" else np.full((SIDE, SIDE, 3), (255, 60, 60))
    coverage = disc(SIDE, soft)
    stored = np.where(coverage[..., None] > 0, small, HIDDEN[hidden])
    photograph = open_photograph(np.dstack([stored, 255 * coverage]).round().astype(np.uint8))
    result = np.asarray(photograph.finish(bicubic(photograph.pixels))).astype(float)
    truth = bicubic(np.rint(small).astype(np.uint8)).astype(float)  # as if all had been opaque
    alpha = result[..., 3] / 255
    for background in BACKGROUNDS:
        found, expected = on(background, result[..., :3], alpha), on(background, truth, alpha)
        assert np.abs(found - expected).max() <= (1 if colors == "one colour" else 15)
        assert np.abs(found - expected).mean() < 0.2


def test_edges_lie_where_they_are_drawn_at_four_times_the_size() -> None:
    photograph = open_photograph(
        np.dstack([np.full((SIDE, SIDE, 3), 255), 255 * disc(SIDE)]).round().astype(np.uint8)
    )
    result = np.asarray(photograph.finish(bicubic(photograph.pixels)))
    assert np.abs(result[..., 3] / 255 - disc(SIDE * SCALE)).mean() < 0.01
    assert result[..., :3].min() == 255
    rows = np.hypot(*(np.mgrid[: SIDE * SCALE, : SIDE * SCALE] + 0.5 - SIDE * SCALE / 2))
    assert result[..., 3][rows < 0.35 * SIDE * SCALE - 6].min() == 255, "no ripples inside"
    assert result[..., 3][rows > 0.35 * SIDE * SCALE + 6].max() == 0, "nor outside"


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.fromarray(np.where(disc(SIDE, soft=False) == 1, 1, 0).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 60, 60])
    image.save(tmp_path / "p.png", transparency=0)
    assert np.all(open_photograph(tmp_path / "p.png").pixels == (255, 60, 60))


@pytest.mark.parametrize("alpha", [np.full_like(ALPHA, 255), np.zeros_like(ALPHA), np.maximum(ALPHA, 32)])
def test_what_hides_nothing_or_everything_is_unchanged(alpha: np.ndarray) -> None:
    assert without_hidden_colors(PICTURE, alpha) is PICTURE
    photograph = open_photograph(np.dstack([PICTURE, alpha]))
    assert np.array_equal(photograph.pixels, PICTURE)


def test_faint_pixels_count_as_much_as_is_seen_of_them() -> None:
    """A colour that shows 1/255 in its own place does not reach its opaque neighbour's."""
    alpha = np.full_like(GREY, 255)
    alpha[:, 30:] = 1
    picture = np.full_like(PICTURE, 200)
    picture[:, 30:] = 0
    filled = without_hidden_colors(picture, alpha)
    assert np.array_equal(filled[:, :30], picture[:, :30])
    assert filled[:, 30].min() > 180
