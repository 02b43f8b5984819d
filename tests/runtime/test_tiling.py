"""Cutting and blending: every pixel covered, weights that add up to one, nothing changed by cutting alone."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3diff_runtime.pictures.tiling import ESTIMATE_PIXELS, Cut, TilePlan, estimate_windows
from s3diff_runtime.vocabulary import Pixels


@st.composite
def cuts(draw: st.DrawFn, most: int = 400) -> tuple[int, int, int]:
    """(length, tile, overlap) as the options allow them."""
    tile = draw(st.integers(2, 64))
    return draw(st.integers(1, most)), tile, draw(st.integers(0, tile // 2))


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grown(tile: Pixels, scale: int) -> Pixels:
    return tile.repeat(scale, axis=0).repeat(scale, axis=1)


@given(cuts())
def test_cut_covers_every_pixel(sizes: tuple[int, int, int]) -> None:
    length, tile, overlap = sizes
    cut = Cut.of(length, tile, overlap)
    assert cut.side == min(tile, length)
    assert cut.starts[0] == 0
    assert cut.starts[-1] + cut.side == length
    for earlier, later in pairwise(cut.starts):
        assert earlier < later
        assert earlier + cut.side - later >= overlap


@given(cuts())
def test_inner_tiles_keep_the_phase(sizes: tuple[int, int, int]) -> None:
    length, tile, overlap = sizes
    inner = Cut.of(length, tile, overlap).starts[:-1]
    assert all(start % (tile - overlap) == 0 for start in inner)


@given(cuts(), st.integers(1, 4))
def test_weights_add_up_to_one(sizes: tuple[int, int, int], scale: int) -> None:
    length, tile, overlap = sizes
    cut = Cut.of(length, tile, overlap)
    total = np.zeros(length * scale)
    for start, weights in zip(cut.starts, cut.weights(overlap, scale), strict=True):
        assert weights.dtype == np.float32
        assert weights.shape == (cut.side * scale,)
        assert weights.min() >= 0
        assert weights.max() <= 1
        total[start * scale : (start + cut.side) * scale] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(cuts(), st.integers(1, 4))
def test_weights_fade_in_and_out(sizes: tuple[int, int, int], scale: int) -> None:
    """At most one rise and one fall, no steeper than the fade allows; next to nothing at inner borders."""
    length, tile, overlap = sizes
    cut = Cut.of(length, tile, overlap)
    shares = cut.weights(overlap, scale)
    for number, weights in enumerate(shares):
        steps = np.sign(np.diff(weights.astype(float)).round(7))
        assert (np.diff(steps[steps != 0]) <= 0).all()
        if overlap:
            steepest = np.pi / 2 / (overlap * scale)
            assert np.abs(np.diff(weights)).max(initial=0) <= steepest + 1e-6
            borders = ([weights[0]] if number else []) + ([weights[-1]] if number < len(shares) - 1 else [])
            assert all(border <= steepest for border in borders)


@given(cuts(150), st.integers(1, 150), st.integers(1, 4))
def test_cutting_alone_changes_nothing(sizes: tuple[int, int, int], width: int, scale: int) -> None:
    height, tile, overlap = sizes
    image = noise(height, width)
    plan = TilePlan.of(height, width, tile, overlap)
    tiles = list(plan.cut(image))
    assert len(tiles) == len(plan)
    assert len({piece.shape for piece in tiles}) == 1
    blended = plan.blend((grown(piece, scale) for piece in tiles), scale)
    assert blended.dtype == np.uint8
    np.testing.assert_array_equal(blended, grown(image, scale))


@given(cuts(150), st.integers(1, 150))
def test_blend_stays_between_its_tiles(sizes: tuple[int, int, int], width: int) -> None:
    height, tile, overlap = sizes
    plan = TilePlan.of(height, width, tile, overlap)
    shape = (plan.rows.side * 2, plan.columns.side * 2, 3)
    levels = [40 + 170 * (number % 2) for number in range(len(plan))]
    blended = plan.blend((np.full(shape, level, np.uint8) for level in levels), 2)
    assert blended.shape == (height * 2, width * 2, 3)
    assert min(levels) <= blended.min() <= blended.max() <= max(levels)


def test_blend_passes_smoothly_from_tile_to_tile() -> None:
    plan = TilePlan.of(16, 48, 32, 16)
    black, white = (np.full((64, 128, 3), level, np.uint8) for level in (0, 255))
    line = plan.blend([black, white], 4)[0, :, 0].astype(int)
    assert (line[:64] == 0).all()
    assert (line[-64:] == 255).all()
    assert (np.diff(line) >= 0).all()
    assert np.diff(line).max() <= 255 * np.pi / 2 / 64 + 1
    assert line[95] + line[96] == 255


def test_blend_holds_one_band() -> None:
    image = noise(4000, 200)
    plan = TilePlan.of(4000, 200, 64, 16)
    tracemalloc.start()
    result = plan.blend((grown(piece, 2) for piece in plan.cut(image)), 2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    band = 4 * plan.rows.side * 2 * 200 * 2 * 3
    assert peak - result.nbytes < 3 * band < result.nbytes / 4


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_small_images_are_estimated_whole(height: int, width: int) -> None:
    windows = estimate_windows(height, width)
    if height * width <= ESTIMATE_PIXELS:
        assert windows == [(slice(0, height), slice(0, width))]
    else:
        sides = {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows}
        assert sides == {(min(128, height), min(128, width))}


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_estimate_windows_are_bounded_and_span_the_image(height: int, width: int) -> None:
    windows = estimate_windows(height, width)
    pixels = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in windows)
    assert 1 <= pixels <= ESTIMATE_PIXELS
    for axis, length in enumerate((height, width)):
        assert all(0 <= window[axis].start < window[axis].stop <= length for window in windows)
        starts = {window[axis].start for window in windows}
        if len(starts) > 1:
            assert min(starts) == 0
            assert max(window[axis].stop for window in windows) == length


@pytest.mark.parametrize(("height", "width", "grid"), [(2000, 2000, (4, 4)), (100, 20000, (1, 16))])
def test_estimate_windows_follow_the_shape(height: int, width: int, grid: tuple[int, int]) -> None:
    windows = estimate_windows(height, width)
    assert tuple(len({window[axis].start for window in windows}) for axis in (0, 1)) == grid
