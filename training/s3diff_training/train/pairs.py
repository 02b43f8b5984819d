"""What the trainers learn from and what they are judged on: training pairs, and held-out ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import SCALE
from s3diff_training.data import PhotographFolder
from s3diff_training.degradations.pipeline import SMALLEST_SIDE, DegradationPipeline, DegradedBatch
from s3diff_training.losses.lpips import LPIPS, Net
from s3diff_training.train.loop import Samples, TrainLoop
from s3diff_training.train.validation import Restore, bicubic, held_out_pairs, validate_pairs

_SHOWN = 4  # rows of a contact sheet
_SIDE_MULTIPLE = 32


@dataclass(frozen=True)
class PairOptions:
    """Where the photographs are and how large the crops.

    Raises:
        RequestError: naming every option that is out of range, at once.
    """

    data: Path
    """Folder of high-resolution photographs to train on."""
    crop: int = 512
    """Side of the high-resolution crops, in pixels."""
    validation: Path | None = None
    """Folder of high-resolution photographs never trained on; they are degraded with fixed seeds."""
    validation_crop: int = 512
    """Largest side of the held-out images, in pixels."""

    def __post_init__(self) -> None:
        """Check every option and report all that is wrong in one error."""
        problems = [
            f"{name} is {value}, expected a multiple of {_SIDE_MULTIPLE}, at least {SMALLEST_SIDE}"
            for name, value in (("crop", self.crop), ("validation_crop", self.validation_crop))
            if value < SMALLEST_SIDE or value % _SIDE_MULTIPLE
        ]
        if problems:
            raise RequestError("wrong pair options: " + "; ".join(problems))


class TrainingPairs:
    """Random crops of a folder of photographs, degraded anew every time."""

    def __init__(self, options: PairOptions) -> None:
        """Open the folder; too small and unreadable photographs are skipped and reported.

        Raises:
            RequestError: when it holds no usable photograph.
        """
        self._photographs = PhotographFolder(options.data, options.crop)
        self._crop = options.crop
        self._pipeline = DegradationPipeline(scale=SCALE)

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
        self._pairs = held_out_pairs(folder, DegradationPipeline(scale=SCALE), [0], options.validation_crop)

    def scores(self, restore: Restore) -> dict[str, float]:
        """PSNR-Y, SSIM-Y and, where weights are given, LPIPS: of `restore`, and of bicubic."""
        if not self._scored:
            return {}
        ours = validate_pairs(restore, self._pairs, self._lpips).named()
        return ours | validate_pairs(bicubic, self._pairs, self._lpips).named("bicubic_")

    def samples(self, restore: Restore) -> Samples:
        """LR (enlarged), bicubic, result and truth."""
        rows = []
        for pair in self._pairs[:_SHOWN]:
            large = F.interpolate(pair.lr, scale_factor=SCALE, mode="nearest")
            rows.append([image[0].cpu() for image in (large, bicubic(pair.lr), restore(pair.lr), pair.hr)])
        return Samples(rows, ("low resolution", "bicubic", "restored", "truth"))


def load_lpips(weight: float, net: Net, weights: Path | None, device: torch.device) -> LPIPS | None:
    """LPIPS for training and validation, or None when its weight is 0.

    Raises:
        RequestError: when there are no weights for it; says where to get them, or to pass a weight of 0.
    """
    if weight == 0:
        return None
    try:
        return LPIPS.load(net, weights).to(device)
    except RequestError as error:
        raise RequestError(f"{error}, or train without it (--lambda-lpips 0)") from error
