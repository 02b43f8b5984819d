"""Figures that others published, each with its source, as tables; in the paper's Table 3 with ours beside.

The paper is "Degradation-Guided One-Step Image Super-Resolution with Diffusion Priors"; where its tables and
the works that it compares with disagree, both stand here.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files

from s3diff_benchmarks.report.layouts import table
from s3diff_benchmarks.report.model import Cell, Row, Table
from s3diff_runtime.errors import RequestError

_SUPER_RESOLUTION = "128→512"


def _rows_of(file: str) -> Iterator[Row]:
    """The rows of a data file by its headings, those of the table that shows them; an empty cell is None."""
    text = (files("s3diff_benchmarks") / "data" / file).read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        yield {name: _cell(cell) for name, cell in row.items()}


def _cell(text: str) -> Cell:
    try:
        cell: Cell = json.loads(text)
    except ValueError:
        return text or None
    return cell


_QUALITY = tuple(_rows_of("published_quality.csv"))
"""Mean scores of methods, the Y channel's where there are two; None where they were not published.

The paper's Table 1, and of RealSet65 its Table 2, in their order. The number behind a method's name is its
diffusion steps.
"""
_SPEED = tuple(_rows_of("published_speed.csv"))
"""Seconds for one image as others measured them, and trained parameters in millions.

Behind the paper's Table 3 stand what others reach with the means that we use, the stronger targets.
"""
DATASETS = tuple(dict.fromkeys(str(row["dataset"]) for row in _QUALITY))
METHODS = tuple(dict.fromkeys(str(row["method"]) for row in _QUALITY))


def dataset_named(text: str) -> str:
    """The data set of the paper's that is meant, in capitals or not. Raises `RequestError` for another."""
    found = {name.lower(): name for name in DATASETS}.get(text.lower())
    if found is None:
        raise RequestError(f"the paper has no scores for {text!r}; it has them for {', '.join(DATASETS)}")
    return found


def quality_table(dataset: str) -> Table:
    """The paper's rows for one of `DATASETS`, in its order."""
    rows = ([*row.values()][1:] for row in _QUALITY if row["dataset"] == dataset)
    return table("published", rows, dataset=dataset)


def table3(
    ours: float | None,
    machine: str,
    trainable_millions: float | None,
    baselines: Mapping[str, float],
) -> Table:
    """The paper's Table 3 with rows of this run.

    Ratios stand only beside what was measured in this run, never beside a figure of another machine.

    Args:
        ours: seconds for one image, 128→512; None where that was not measured.
        machine: the name of the one that this run measured on.
        trainable_millions: parameters that the checkpoint trains; None where there is no checkpoint.
        baselines: seconds for the same image of other ways to compute S3Diff, measured in the same run.
    """
    rows: list[tuple[Cell, ...]] = [(*row.values(), None) for row in _SPEED]
    measured = baselines if ours is None else {"S3Diff, this bundle": ours, **baselines}
    for name, seconds in measured.items():
        ratio = None if ours is None else seconds / ours
        rows.append((name, "this run", _SUPER_RESOLUTION, machine, 1, seconds, trainable_millions, ratio))
    return table("table3", rows)
