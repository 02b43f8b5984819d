"""What bins cost in exactness: results of the nearest bin against exact ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean

import torch
from torch import Tensor

from s3diff_export.bins import grid
from s3diff_runtime.bundle.manifest import Bin, nearest_bin
from s3diff_training.network.model import ForwardPass, S3Diff
from s3diff_training.network.one_step_network import Restored

MEASURED_GRIDS = (1, 2, 3, 4, 6)
"""Sides of the square grids that `bin_costs` compares."""
_POINTS = 8
"""Degradations at which it does, drawn uniformly."""


@dataclass(frozen=True)
class BinCost:
    """How far the nearest bin's result is from the exact one, over a set of degradations."""

    bins: str
    count: int
    epsilon_relative_mean: float
    """Mean over images of the norm of the error of ε (positive prompt) over the norm of ε."""
    epsilon_relative_max: float
    image_psnr_mean: float
    """Of the final images, wavelet-corrected, in dB; over R, G and B."""
    image_psnr_min: float


@torch.no_grad()
def bin_costs(network: S3Diff, image: Tensor, chosen: Sequence[Bin]) -> Iterator[BinCost]:
    """Compare nearest-bin results with exact ones, for the chosen bins and for square grids.

    Merging is exact at a bin's centre, so the centre's modulation stands for the merged graph.

    Args:
        network: with modulated LoRA.
        image: LR `[1, 3, h, w]` in [0, 1]; a small one will do.
        chosen: the bins of the build, compared first.
    """
    points = torch.rand(_POINTS, 2, generator=torch.Generator().manual_seed(0)).tolist()
    prompts = network.encode_prompts([network.config.positive_prompt, network.config.negative_prompt])

    @cache  # sets of bins share centres, and points share their nearest one
    def restored(noise: float, blur: float) -> Restored[ForwardPass]:
        return network.restore(
            image, noise=noise, blur=blur, positive_prompt=prompts[:1], negative_prompt=prompts[1:]
        )

    sets = {"chosen": tuple(chosen)} | {f"{side}x{side}": grid(side, side) for side in MEASURED_GRIDS}
    for name, bins in sets.items():
        errors, psnrs = [], []
        for noise, blur in points:
            exact, centre = restored(noise, blur), nearest_bin(bins, noise, blur)
            binned = exact if centre is None else restored(centre.noise, centre.blur)
            truth, found = (each.forward.predictions["epsilon_positive"] for each in (exact, binned))
            errors.append(float((found - truth).norm() / truth.norm()))
            square = torch.mean((exact.image - binned.image) ** 2).clamp(min=1e-12)
            psnrs.append(float(-10 * torch.log10(square)))
        yield BinCost(name, len(bins), fmean(errors), max(errors), fmean(psnrs), min(psnrs))
