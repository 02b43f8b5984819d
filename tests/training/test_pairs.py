"""What the trainers draw: the same pairs whoever makes them, crops with detail, drawn ones, halved ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.train.loop import LoopOptions, TrainLoop
from s3diff_training.train.pairs import PairOptions, TrainingPairs, drawn_crop, toned_crop

CROP = 64


def made(options: PairOptions, number: int = 0, size: int = 24) -> DegradedBatch:
    return TrainingPairs(options).made(number, size, (0, 0), torch.device("cpu"))


@pytest.fixture
def half_flat(tmp_path: Path) -> Path:
    """A folder of one photograph: stripes of one pixel on the left, nothing on the right."""
    pixels = np.full((160, 640, 3), 128, np.uint8)
    pixels[:, :320:2] = 0
    Image.fromarray(pixels).save(tmp_path / "stripes.png")
    return tmp_path


def spread(crops: Tensor) -> Tensor:
    return crops.flatten(1).std(dim=1)


def test_workers_make_the_very_pairs_that_are_made_without_them(photograph_folder: Path) -> None:
    options = PairOptions(photograph_folder, CROP, drawn_fraction=0.3, candidates=2)
    loops = [TrainLoop(LoopOptions(steps=3, batch=3, accumulate=2)) for _ in range(2)]
    alone, helped = TrainingPairs(options), TrainingPairs(options.but(workers=2))
    for step in (1, 2):  # a run that was resumed after its first step
        for loop in loops:
            loop.step = step
        for one, other in zip(alone.draw(loops[0]), helped.draw(loops[1]), strict=True):
            for name in ("lr", "hr", "noise", "blur"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_batches_differ_by_number_and_process(photograph_folder: Path) -> None:
    pairs, cpu = TrainingPairs(PairOptions(photograph_folder, CROP)), torch.device("cpu")
    first, *others = (pairs.made(*of, cpu) for of in ((0, 2, (0, 0)), (1, 2, (0, 0)), (0, 2, (0, 1))))
    assert not any(torch.equal(first.hr, other.hr) for other in others)


def test_the_more_detailed_of_several_crops_is_taken(half_flat: Path) -> None:
    options = PairOptions(half_flat, CROP)
    flat = [int((spread(made(options.but(candidates=n)).hr) == 0).sum()) for n in (1, 4)]
    assert flat[0] > 4 > flat[1]


def test_halved_crops_show_twice_as_much(half_flat: Path) -> None:
    halved = made(PairOptions(half_flat, CROP, halved_fraction=1.0))
    assert halved.hr.shape == (24, 3, CROP, CROP)
    # Stripes of one pixel, black and grey, average to their mean.
    assert set((halved.hr * 255).round().unique().tolist()) == {64.0, 128.0}


def test_toned_crops_keep_their_shapes_and_their_share(half_flat: Path) -> None:
    plain = made(PairOptions(half_flat, CROP))
    toned = made(PairOptions(half_flat, CROP, toned_fraction=1.0)).hr
    assert len(toned.flatten(1).amax(dim=1).unique()) > 12  # a tone of its own for each
    for crop in toned:
        assert len(crop[0].unique()) <= 2  # stripes of two levels, or a flat part
        assert crop.min() >= 0 and crop.max() <= 1
    some = made(PairOptions(half_flat, CROP, toned_fraction=0.5))
    levels = {0.0, 128.0}
    kept = [set((crop * 255).round().unique().tolist()) <= levels for crop in some.hr]
    assert 4 < sum(kept) < 20
    assert torch.equal(made(PairOptions(half_flat, CROP, toned_fraction=0.0)).hr, plain.hr)


def test_a_tone_changes_colours_and_contrast() -> None:
    generator = torch.Generator().manual_seed(3)
    ramp = torch.arange(256).byte().expand(3, 4, 256).clone()
    ramp[0] = 255 - ramp[0]
    toned = [toned_crop(ramp, generator).int() for _ in range(40)]
    ranges = [int(crop[0].max() - crop[0].min()) for crop in toned]
    assert min(ranges) >= 126 and max(ranges) > 240 and min(ranges) < 150
    falling = [next(c for c in range(3) if crop[c, 0, 0] > crop[c, 0, -1]) for crop in toned]
    assert set(falling) == {0, 1, 2}
    middles = [int(crop[(falling[i] + 1) % 3, 0, 128]) for i, crop in enumerate(toned)]
    assert max(middles) - min(middles) > 60


def test_drawn_crops_replace_their_share(half_flat: Path) -> None:
    plain = made(PairOptions(half_flat, CROP))
    drawn = made(PairOptions(half_flat, CROP, drawn_fraction=0.5))
    changed = (plain.hr != drawn.hr).flatten(1).any(dim=1)
    assert 4 < changed.sum() < 20
    exact = (drawn.noise == 0) & (drawn.blur == 0)
    assert exact[changed].any() and not exact[changed].all()
    shrunk = torch.nn.functional.avg_pool2d(drawn.hr, 4)
    assert torch.allclose(drawn.lr[exact & changed], shrunk[exact & changed], atol=0.5001 / 255)


def test_drawn_crops_are_flat_or_have_one_edge() -> None:
    generator = torch.Generator().manual_seed(0)
    crops = [drawn_crop(CROP, generator) for _ in range(60)]
    colours = [len(crop.flatten(1).unique(dim=1).T) for crop in crops]
    assert 20 < colours.count(1) < 50
    flat = [crop[:, 0, 0].tolist() for crop, count in zip(crops, colours, strict=True) if count == 1]
    assert [0, 0, 0] in flat and [255, 255, 255] in flat
    edges = [crop.float() for crop, count in zip(crops, colours, strict=True) if count > 1]
    for crop in edges:
        steps = (crop[:, 1:, 1:] - crop[:, :-1, :-1]).abs().sum(0) > 0
        assert steps.float().mean() < 0.2  # along a line, and nowhere else
