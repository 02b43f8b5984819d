"""How figures are shown to people: rounded, and with their intervals, the same everywhere."""

from __future__ import annotations

import math
from typing import NamedTuple

from s3diff_benchmarks.report.model import Cell, Column, Row, Table, bounds_of, figure_in

NOTHING = "–"
"""Stands where there is no figure."""


class ShownCell(NamedTuple):
    """A cell, and what people see of it."""

    value: Cell
    text: str


class ShownTable(NamedTuple):
    """What people see of a table: "NAME low" and "NAME high" stand in the cells of NAME."""

    columns: list[Column]
    numeric: list[bool]
    """Of each column, whether a cell is a number."""
    rows: list[list[ShownCell]]


def shown_table(table: Table) -> ShownTable:
    """All of a table, as text."""
    bounds = {bound for column in table.columns for bound in bounds_of(column.name)}
    columns = [column for column in table.columns if column.name not in bounds]
    rows = [[_shown_cell(column, row) for column in columns] for row in table.records]
    numeric = [any(figure_in(row[at].value) is not None for row in rows) for at in range(len(columns))]
    return ShownTable(columns, numeric, rows)


def shown(cell: Cell, digits: int = 3) -> str:
    """The text of a cell: so many significant digits of a float, no exponent unless tiny or huge."""
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return rounded(cell, digits) if isinstance(cell, float) else str(cell)


def rounded(value: float, digits: int = 3) -> str:
    """A number with that many significant digits; all digits before the point are kept."""
    if not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - magnitude, 0)}f}"


def _shown_cell(column: Column, row: Row) -> ShownCell:
    """A cell with its interval where the row states one: `25.76 [21.19, 30.33]`."""
    text = shown(row[column.name], column.digits)
    low, high = (row.get(bound) for bound in bounds_of(column.name))
    if low is not None and high is not None:
        text = f"{text} [{shown(low, column.digits)}, {shown(high, column.digits)}]"
    return ShownCell(row[column.name], text)
