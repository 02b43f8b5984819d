"""How well trained weights restore: the figures of a model's card, which anyone can measure again.

Images are scored as the paper does (section 4.1), after the wavelet correction, beside bicubic interpolation.
Three further figures find what scores miss: grids of a strided network, a degradation score that does nothing
when it is set by hand (the paper's figure 11), and an estimator that guesses.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from torch import Tensor

from s3diff_runtime.vocabulary import SCALE
from s3diff_training.data import PhotographFolder, contact_sheet, to_uint8
from s3diff_training.degradations import DegradationPipeline
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.metrics import flat_patches, grid_energy_ratio, high_frequency_energy, luma
from s3diff_training.network import S3Diff
from s3diff_training.train.estimator import degraded_crops, rank_correlation
from s3diff_training.train.validation import (
    Pair,
    PairedFolders,
    Restore,
    ValidationScores,
    bicubic,
    held_out_pairs,
    validate_pairs,
)

SEEDS = (0, 1, 2)
NOISE_SCORES = (0.0, 0.5, 1.0)
_SIZE = 512
_SMALLEST_SIDE = 64  # of a photograph that holds one patch for the grid
_FLAT_FRACTION = 0.1
_CROPS, _CROP = 128, 256
_SHOWN = 4
_LOG = logging.getLogger(__name__)
Item = TypeVar("Item")


@dataclass(frozen=True)
class Scores:
    """Means over pairs, of the network and of bicubic interpolation on the same pairs; LPIPS is AlexNet's."""

    ours: ValidationScores
    bicubic: ValidationScores

    @property
    def lpips_ratio(self) -> float:
        """Our LPIPS over bicubic's; lower is better."""
        if self.ours.lpips is None or self.bicubic.lpips is None:
            raise ValueError("these scores were taken without LPIPS")
        return self.ours.lpips / self.bicubic.lpips


@dataclass(frozen=True)
class Target:
    """One requirement, and whether it is met."""

    name: str
    measured: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class Evaluation:
    """The figures of a model's card."""

    held_out: Scores
    """On photographs, degraded by the training pipeline with `SEEDS`, to 512 pixels a side."""
    pairs: Scores | None
    """On real pairs, where some were given."""
    grid: dict[int, float]
    """By period in pixels: how far a grid stands out of (result - truth) on the flattest tenth (1: not)."""
    bicubic_grid: dict[int, float]
    control: dict[float, float]
    """By the noise score set by hand: mean power above half the Nyquist frequency, grey levels squared."""
    spearman: dict[str, float]
    """By axis: rank correlation of estimated and true levels on degraded crops."""
    lpips_weights: str
    """Where the weights of LPIPS came from."""

    def targets(self) -> list[Target]:
        """What a good model reaches, in the order of a card."""
        ours, baseline = self.held_out.ours, self.held_out.bicubic
        steps = [after / before for before, after in pairwise(self.control.values())]
        return [
            _at_least("held-out PSNR-Y, dB (limit: bicubic's)", ours.psnr_y, baseline.psnr_y),
            _at_most("held-out LPIPS / bicubic's", self.held_out.lpips_ratio, 0.65),
            *self._pair_targets(),
            *(_at_most(f"grid of period {period}", ratio, 1.5) for period, ratio in self.grid.items()),
            Target("fine detail, next noise score / this one", max(steps), 1.0, max(steps) < 1),
            _at_least("Spearman, noise", self.spearman["noise"], 0.8),
            _at_least("Spearman, blur", self.spearman["blur"], 0.6),
        ]

    def to_dict(self) -> dict[str, Any]:
        """All figures and targets, as JSON types."""
        targets = [asdict(target) for target in self.targets()]
        return {**asdict(self), "targets": targets}

    def _pair_targets(self) -> list[Target]:
        if self.pairs is None:
            return []
        return [
            _at_most("real pairs: LPIPS / bicubic's", self.pairs.lpips_ratio, 0.75),
            _at_least("real pairs: PSNR-Y, dB", self.pairs.ours.psnr_y, 26),
        ]


class Evaluator:
    """Measures one network on one folder of held-out photographs, restoring each image once."""

    def __init__(self, network: S3Diff, lpips: LPIPS, held_out: Path) -> None:
        """Degrade the photographs.

        Args:
            network: with trained weights, on the device to compute on.
            lpips: on any device.
            held_out: a folder of photographs that it was never trained on.

        Raises:
            RequestError: when the folder holds no photograph of 64 pixels a side or more.
        """
        self._network, self._lpips, self._folder = network, lpips, held_out
        photographs = PhotographFolder(held_out, _SMALLEST_SIDE, memory_mib=0)
        self._pairs = held_out_pairs(photographs, DegradationPipeline(scale=SCALE), SEEDS, _SIZE)
        self._one_seed = self._pairs[:: len(SEEDS)]
        # Tensors are told apart by identity, and those of the pairs live as long as this object.
        self._restore_once: Restore = functools.cache(self._restore)

    def evaluate(self, pairs: PairedFolders | None = None) -> Evaluation:
        """Measure everything, on real `pairs` too where they are given; shows its progress."""
        crops = degraded_crops(self._folder, _CROPS, min(_CROP, self._shortest_side()))
        return Evaluation(
            held_out=self._scores("held-out photographs", self._pairs, self._restore_once),
            pairs=None if pairs is None else self._scores("real pairs", list(pairs), self._restore),
            grid=self._grid(self._restore_once),
            bicubic_grid=self._grid(bicubic),
            control={noise: self._fine_detail(noise) for noise in NOISE_SCORES},
            spearman=rank_correlation(self._network.estimator, _shown(crops, "estimator")),
            lpips_weights=self._lpips.weights_id,
        )

    def picture(self, path: Path) -> None:
        """Write a sheet of four held-out photographs: low resolution, bicubic, ours, high resolution."""
        rows = [
            [image[0].cpu() for image in (pair.lr, bicubic(pair.lr), self._restore_once(pair.lr), pair.hr)]
            for pair in self._one_seed[:_SHOWN]
        ]
        contact_sheet(rows, ("low resolution", "bicubic", "ours", "high resolution"), path)

    def _scores(self, stage: str, pairs: Sequence[Pair], restore: Restore) -> Scores:
        ours = validate_pairs(restore, _shown(pairs, stage), self._lpips)
        return Scores(ours, validate_pairs(bicubic, pairs, self._lpips))

    def _grid(self, restore: Restore) -> dict[int, float]:
        patches = []
        for pair in self._pairs:
            truth = to_uint8(pair.hr)
            residual = luma(to_uint8(restore(pair.lr))) - luma(truth)
            patches += [residual[window] for window in flat_patches(truth, _FLAT_FRACTION)]
        return grid_energy_ratio(np.stack(patches))

    def _fine_detail(self, noise: float) -> float:
        pairs = _shown(self._one_seed, f"noise score {noise}")
        return float(np.mean([high_frequency_energy(to_uint8(self._restore(p.lr, noise))) for p in pairs]))

    def _restore(self, lr: Tensor, noise: float | None = None) -> Tensor:
        device = next(self._network.parameters()).device
        seed = 0 if self._network.one_step.adds_noise else None
        return self._network.restore(lr.to(device), noise=noise, seed=seed).image.cpu()

    def _shortest_side(self) -> int:
        """Of the held-out truths: a multiple of 32."""
        return min(min(pair.hr.shape[-2:]) for pair in self._one_seed)


def _at_least(name: str, measured: float, limit: float) -> Target:
    return Target(f"{name}, at least", measured, limit, measured >= limit)


def _at_most(name: str, measured: float, limit: float) -> Target:
    return Target(f"{name}, at most", measured, limit, measured <= limit)


def _shown(items: Sequence[Item], stage: str) -> Iterable[Item]:
    """The items, with a bar on a terminal, and a line of log elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        _LOG.info("%s: %d images", stage, len(items))
    return track(items, stage, console=console, transient=True, disable=not console.is_terminal)
