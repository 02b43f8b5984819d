"""What the noise and blur scores do to one image: the paper's Figure 11, as a sheet and in figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s3diff_benchmarks.pictures.pairs import LEAST_SIDE
from s3diff_benchmarks.pictures.pixels import middle
from s3diff_benchmarks.pictures.scores import DETAIL, Sample, ScoreOptions, Scores, load_scores
from s3diff_benchmarks.report.findings import BundleRequest, Findings
from s3diff_benchmarks.report.layouts import plot, table
from s3diff_benchmarks.report.model import Picture, Table
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import argument, group, option
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import counted
from s3diff_runtime.upscaler import Result, Upscaler
from s3diff_runtime.vocabulary import SCALE, Pixels
from s3diff_training.drawn_pictures import draw_picture

_DRAWN_SIDE = 64
_CELL = 384
"""Longest side of a cell of the sheet, in result pixels; of larger results the middle is shown."""
_GAP, _CAPTION, _CAPTION_WIDTH = 6, 24, 150
_SHEET = "grid"


@dataclass(frozen=True)
class ControlRequest(BundleRequest):
    """The grid, and what it is taken with."""

    image: Path | None = argument("Photograph to restore; drawn by default.", default=None)
    hr: Path | None = option(None, "The image's truth, four times as large, for PSNR, SSIM and LPIPS.")
    steps: int = option(3, "Scores on each axis, equally spaced from 0 to 1.", least=2, most=11)
    engine: str = option("auto", ENGINE_HELP)
    scoring: ScoreOptions = group(ScoreOptions, only=("lpips_weights",))

    def problems(self) -> Iterator[str]:
        """A truth of nothing."""
        if self.hr is not None and self.image is None:
            yield "--hr is the truth of an IMAGE; name that image too"

    @property
    def levels(self) -> tuple[float, ...]:
        """The scores on each axis."""
        return tuple(round(float(level), 4) for level in np.linspace(0, 1, self.steps))


@dataclass(frozen=True)
class Setting:
    """One result of the grid, or the one at the estimate."""

    name: str
    result: Result
    scores: Mapping[str, float]


def run_control(request: ControlRequest) -> Findings:
    """Restore IMAGE with every pair of noise and blur scores of a grid, as the paper's Figure 11.

    The report shows the grid as one sheet, and the fine detail left in each cell. Without an IMAGE one is
    drawn. A merged bundle answers every setting with its nearest bin; the table says which.

    \b
      s3diff-export bench control s3diff.bundle photograph.jpg --steps 5 -o control
    """
    from s3diff_benchmarks.pytorch_method import torch_device

    if not Manifest.read(request.bundle).degradation_axes:
        raise RequestError(f"{request.bundle} restores without scores: there is nothing to set by hand")
    drawn = draw_picture(_DRAWN_SIDE, _DRAWN_SIDE, 0)
    lr = drawn if request.image is None else open_photograph(request.image).pixels
    truth = None if request.hr is None else open_photograph(request.hr).pixels
    on = "cpu" if truth is None else torch_device(request.device)
    return measure_control(request, lr, truth, load_scores(request.scoring, truth is not None, on))


def measure_control(request: ControlRequest, lr: Pixels, truth: Pixels | None, scores: Scores) -> Findings:
    """Restore an image with every pair of scores, and at its estimate.

    `lr` is `[H, W, 3]`, and `truth`, where the scores need one, `[4H, 4W, 3]`.

    Raises:
        RequestError: when the truth is not four times as large as the input, or too small to score.
        RequestError, BundleError, JobError: see `Upscaler`.
    """
    expected = (SCALE * lr.shape[0], SCALE * lr.shape[1])
    if truth is not None and truth.shape[:2] != expected:
        sizes = " and ".join(f"{shape[1]}×{shape[0]}" for shape in (lr.shape, truth.shape))
        raise RequestError(f"HR must be {SCALE} times as large as the image; got {sizes}")
    if truth is not None and min(lr.shape[:2]) < LEAST_SIDE:
        raise RequestError(f"the image is too small to score; expected at least {LEAST_SIDE} pixels a side")
    with Upscaler.open(request.bundle, request.engine, request.device) as upscaler:
        estimated, *grid = _settings(upscaler, request.levels, lr, truth, scores)
    shown = {
        "where": {"setting": tuple(setting.name for setting in grid)},
        "log_y": min(setting.scores[DETAIL] for setting in grid) > 0,
    }
    title = "Noise score downwards, blur score to the right"
    return Findings(
        tables=(_table([estimated, *grid], scores),),
        plots=(plot("control", shown),),
        pictures=(Picture(name="control", title=title, before=_SHEET, after=_SHEET),),
        notes=(*_shared_bins(grid), *scores.notes),
        images={_SHEET: _sheet([setting.result.pixels for setting in grid], request.levels)},
    )


def _settings(
    upscaler: Upscaler, levels: Sequence[float], lr: Pixels, truth: Pixels | None, scores: Scores
) -> Iterator[Setting]:
    """The result at the estimate, then those of the grid by noise, then blur."""
    pairs = [(None, None), *product(levels, levels)]
    with counted(len(pairs), "control") as tell:
        for number, (noise, blur) in enumerate(pairs):
            name = "as estimated" if noise is None else f"noise {noise:g}, blur {blur:g}"
            tell(number, name)
            (result,) = upscaler.upscale_pixels([lr], noise=noise, blur=blur)
            yield Setting(name, result, scores.measure(Sample(result.pixels, lr, truth)))


def _table(settings: Sequence[Setting], scores: Scores) -> Table:
    # No arrows: a score set by hand is not meant to be as good as it can be.
    figures = (score.columns()[0].model_copy(update={"better": ""}) for score in scores.scores)
    rows = []
    for setting in settings:
        applied, chosen = setting.result.applied, setting.result.bin
        measured = (value if np.isfinite(value) else None for value in setting.scores.values())
        bin_name = chosen.name if chosen else None
        rows.append((setting.name, applied["noise"], applied["blur"], bin_name, *measured))
    return table("control", rows, tuple(figures))


def _shared_bins(grid: Sequence[Setting]) -> Iterator[str]:
    names = {setting.result.bin.name for setting in grid if setting.result.bin}
    if names:
        yield (
            f"this bundle is merged: every setting is answered with the weights of the nearest bin, and the "
            f"{len(grid)} settings share {len(names)}"
        )


def _sheet(results: Sequence[Pixels], levels: Sequence[float]) -> Image.Image:
    """The results as a grid with captions: noise downwards, blur to the right."""
    cells = [Image.fromarray(middle(pixels, _CELL)) for pixels in results]
    width, height = cells[0].size
    step_x, step_y = max(width, _CAPTION_WIDTH) + _GAP, height + _CAPTION
    sheet = Image.new("RGB", (step_x * len(levels) + _GAP, step_y * len(levels) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for cell, (row, column) in zip(cells, np.ndindex(len(levels), len(levels)), strict=True):
        left, top = _GAP + column * step_x, row * step_y
        caption = f"noise {levels[row]:g}, blur {levels[column]:g}"
        draw.text((left, top + 4), caption, fill="black", font=font)
        sheet.paste(cell, (left, top + _CAPTION))
    return sheet
