"""`train estimator`: the degradation estimator, on the true levels of synthetic pairs.

The source work (MM-RealSR) learns its scores by ranking, for want of true levels. The pipeline here measures
them (`DegradationPipeline`), so the estimator regresses them, and a score set by hand has a meaning.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from s3diff_training.checkpoints.released import write_estimator
from s3diff_training.data import PhotographFolder
from s3diff_training.degradations.pipeline import DegradationPipeline, DegradedBatch
from s3diff_training.metrics import spearman
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.train.loop import Samples, TrainLoop
from s3diff_training.train.optimisers import TrainableModule
from s3diff_training.train.pairs import PairOptions, TrainingPairs

ESTIMATED = NetworkConfig.degradation_axes
"""What the estimator gives, in the order of its outputs."""
_HELD_OUT_CROPS = 96
_SHOWN = 8


def degraded_crops(folder: Path, count: int, size: int) -> list[DegradedBatch]:
    """Random crops of `size` HR pixels a side, each degraded on its own, always the same.

    To score an estimator. Raises `RequestError` when the folder holds no photograph that large.
    """
    photographs, pipeline = PhotographFolder(folder, size), DegradationPipeline()
    generator = torch.Generator().manual_seed(0)
    return [pipeline(photographs.crops(1, size, generator).float() / 255, generator) for _ in range(count)]


@torch.no_grad()
def rank_correlation(estimator: DegradationEstimator, crops: Iterable[DegradedBatch]) -> dict[str, float]:
    """Spearman's correlation of estimated and true levels, by axis; needs two crops or more."""
    device = next(estimator.parameters()).device
    rows = [(estimator(crop.lr.to(device)).cpu(), crop.levels(ESTIMATED)) for crop in crops]
    estimated, true = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return {axis: spearman(estimated[:, i], true[:, i]) for i, axis in enumerate(ESTIMATED)}


class EstimatorTrainer:
    """Trains a degradation estimator, in place."""

    product = "de_net.pth"

    def __init__(self, estimator: DegradationEstimator, options: PairOptions) -> None:
        self._estimator, self._pairs = estimator.requires_grad_(True), TrainingPairs(options)
        self.modules = {"estimator": TrainableModule(self._estimator)}
        self._validated = options.validation is not None
        folder = options.validation or options.data
        count = _HELD_OUT_CROPS if self._validated else _SHOWN
        self._crops = degraded_crops(folder, count, options.crop)

    def step(self, loop: TrainLoop) -> Mapping[str, float]:
        """One update: smooth L1 between estimated and true levels."""
        return loop.optimize("estimator", self._pairs.draw(loop), self._terms)

    def sample(self, loop: TrainLoop) -> Samples:
        """LR images beside two patches: their true and their estimated levels (red: blur, green: noise)."""
        rows = []
        for crop in self._crops[:_SHOWN]:
            estimated = self._estimator(crop.lr.to(loop.device)).cpu()
            both = (crop.levels(ESTIMATED), estimated)
            patches = [F.pad(levels, (0, 1))[0, :, None, None].expand_as(crop.lr[0]) for levels in both]
            rows.append([crop.lr[0], *patches])
        return rows, ("low resolution", "true", "estimated")

    def validate(self, loop: TrainLoop) -> Mapping[str, float]:
        """Spearman's correlation on held-out crops, by axis."""
        if not self._validated:
            return {}
        scores = rank_correlation(self._estimator, self._crops)
        return {f"spearman_{axis}": value for axis, value in scores.items()}

    def export(self, path: Path) -> None:
        """Write `de_net.pth`, which `train lora`, `restore` and `convert-checkpoint` take."""
        write_estimator(self._estimator, path)

    def _terms(self, batch: DegradedBatch) -> dict[str, Tensor]:
        estimated, true = self._estimator(batch.lr), batch.levels(ESTIMATED)
        difference = F.smooth_l1_loss(estimated, true, reduction="none", beta=0.1)
        return dict(zip(ESTIMATED, difference.mean(0), strict=True))
