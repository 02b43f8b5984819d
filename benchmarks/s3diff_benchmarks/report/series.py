"""What a plot shows: read from the tables of its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3diff_benchmarks.report.model import (
    CEILINGS,
    Cell,
    Names,
    Plot,
    Table,
    figure_in,
    interval_of,
    names_of,
)

Row = Mapping[str, Cell]
"""The cells of a row by their columns."""


@dataclass(frozen=True)
class Series:
    """One line, or one kind of bar or point; `low` and `high` bound what is uncertain."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


def series_of(plot: Plot, tables: Mapping[str, Table]) -> list[Series]:
    """The series of a plot, in the order of the rows; rows without x or y are left out.

    Args:
        plot: what is drawn of them.
        tables: of its report, by name.
    """
    groups: dict[str, list[Row]] = {}
    for row in tables[plot.table].records:
        if all(
            row[name] in (cell if isinstance(cell, tuple) else (cell,)) for name, cell in plot.where.items()
        ):
            groups.setdefault(_named(row, names_of(plot.by)), []).append(row)
    several = len(names_of(plot.y)) > 1
    found = []
    for name, rows in groups.items():
        for y in names_of(plot.y):
            title = ", ".join(part for part in (name, y if several or not name else "") if part)
            found.append(_series(title, rows, plot.x, y))
    return [series for series in found if series.x]


def ceiling(tables: Mapping[str, Table], points: Sequence[Series]) -> Series:
    """The roof above the points of a roofline (Williams et al. 2009): FLOP for each byte, and TFLOP/s."""
    measured = {row["what"]: figure_in(row["measured"]) for row in tables[CEILINGS].records}
    product, copied = (measured[name] or math.nan for name in ("matrix product", "copy"))
    ridge = 1000 * product / copied
    found = [float(x) for series in points for x in series.x] or [ridge]
    x = sorted({min(*found, ridge) / 2, ridge, max(*found, ridge) * 2})
    return Series("ceiling (measured)", tuple(x), tuple(min(product, each * copied / 1000) for each in x))


def label(text: str, names: Names, table: Table) -> str:
    """The text of an axis; where it is empty, the columns' names with their unit."""
    columns = {column.name: column for column in table.columns}
    unit = columns[names_of(names)[0]].unit
    return text or ", ".join(names_of(names)) + (f" ({unit})" if unit else "")


def _named(row: Row, columns: Sequence[str]) -> str:
    """A series by its cells; numbers with their column's name, nothing for nothing."""
    cells = ((name, row[name]) for name in columns)
    return ", ".join(
        cell if isinstance(cell, str) else f"{name} {_short(cell)}"
        for name, cell in cells
        if cell is not None
    )


def _x(row: Row, names: Names) -> float | str | None:
    cells = [row[name] for name in names_of(names)]
    if None in cells:
        return None
    (first, *more) = cells
    return first if not more and first is not None else " × ".join(map(_short, cells))


def _series(name: str, rows: Sequence[Row], x: Names, y: str) -> Series:
    points = [
        (at, figure, row)
        for row in rows
        if (at := _x(row, x)) is not None and (figure := figure_in(row[y])) is not None
    ]
    low, high = (_known([figure_in(row.get(bound)) for _, _, row in points]) for bound in interval_of(y))
    if low is None or high is None:
        low = high = None
    return Series(name, tuple(at for at, _, _ in points), tuple(figure for _, figure, _ in points), low, high)


def _known(figures: Sequence[float | None]) -> tuple[float, ...] | None:
    """All of them, or None where one is missing."""
    known = tuple(figure for figure in figures if figure is not None)
    return known if len(known) == len(figures) else None


def _short(cell: Cell) -> str:
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
