"""Figures that others published, each with its source, and the paper's Table 3 with ours beside it.

The paper is "Degradation-Guided One-Step Image Super-Resolution with Diffusion Priors"; where its tables and
the works that it compares with disagree, both stand here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import TypeVar

from s3diff_benchmarks.machine import Record
from s3diff_benchmarks.report.model import Cell, Column, Table
from s3diff_runtime.errors import RequestError


class PublishedQuality(Record):
    """Mean scores of a method on a data set; None where they were not published. Y channel, sizes in [0, 1].

    The number behind a method's name is its diffusion steps.
    """

    dataset: str
    name: str
    psnr: float | None
    ssim: float | None
    lpips: float | None
    dists: float | None
    fid: float | None
    niqe: float
    maniqa: float
    musiq: float
    clipiqa: float
    source: str


class PublishedSpeed(Record):
    """Seconds for one image, as somebody measured them elsewhere; parameters in millions.

    Behind the paper's Table 3 stand what others reach with the means that we use, the stronger targets.
    """

    method: str
    steps: int
    seconds: float
    machine: str
    trainable_millions: float | None
    what: str
    source: str


P = TypeVar("P", bound=Record)
_SUPER_RESOLUTION = "128→512"


def _rows_of(file: str, kind: type[P]) -> tuple[P, ...]:
    """The rows of a data file; an empty cell is None."""
    text = (files("s3diff_benchmarks") / "data" / file).read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(kind.model_validate({name: cell or None for name, cell in row.items()}) for row in rows)


QUALITY = _rows_of("published_quality.csv", PublishedQuality)
"""The paper's Table 1, and of RealSet65 its Table 2, in their order."""
SPEED = _rows_of("published_speed.csv", PublishedSpeed)
DATASETS = tuple(dict.fromkeys(row.dataset for row in QUALITY))


def dataset_named(text: str) -> str:
    """The data set of the paper's tables that is meant, in capitals or not.

    Raises:
        RequestError: for another one.
    """
    found = {name.lower(): name for name in DATASETS}.get(text.lower())
    if found is None:
        raise RequestError(f"the paper has no scores for {text!r}; it has them for {', '.join(DATASETS)}")
    return found


def quality_rows(dataset: str) -> tuple[PublishedQuality, ...]:
    """The paper's rows for one of `DATASETS`, in its order."""
    return tuple(row for row in QUALITY if row.dataset == dataset)


def table3(
    ours: float | None,
    machine: str,
    trainable_millions: float | None,
    baselines: Mapping[str, float] = MappingProxyType({}),
) -> Table:
    """The paper's Table 3 with rows of this run.

    Ratios stand only beside what was measured in this run, never beside a figure of another machine.

    Args:
        ours: seconds for one image, 128→512; None where that was not measured.
        machine: the name of the one that this run measured on.
        trainable_millions: parameters that the checkpoint trains; None where there is no checkpoint.
        baselines: seconds for the same image of other ways to compute S3Diff, measured in the same run.
    """
    rows: list[tuple[Cell, ...]] = [
        (row.method, row.source, row.what, row.machine, row.steps, row.seconds, row.trainable_millions, None)
        for row in SPEED
    ]
    measured = baselines if ours is None else {"S3Diff, this bundle": ours, **baselines}
    for name, seconds in measured.items():
        ratio = None if ours is None else seconds / ours
        rows.append((name, "this run", _SUPER_RESOLUTION, machine, 1, seconds, trainable_millions, ratio))
    return Table(
        name="table3",
        title="The paper's Table 3, and this run",
        columns=(
            Column(name="method"),
            Column(name="source"),
            Column(name="task"),
            Column(name="machine"),
            Column(name="steps"),
            Column(name="time", unit="s", better="lower"),
            Column(name="trainable", unit="M parameters", digits=4),
            Column(name="time, this bundle = 1"),
        ),
        rows=tuple(rows),
        key=4,
        note=(
            "Only the rows of this run were measured here; the others are as published, on their own "
            "machines, and no ratio can be taken across machines."
        ),
    )
