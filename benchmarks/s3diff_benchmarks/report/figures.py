"""How figures are shown to people: rounded, with units and arrows, the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence

from s3diff_benchmarks.report.model import Cell, Column, Table, bounds_of

NOTHING = "–"
"""Stands where there is no figure."""

_ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


def shown(cell: Cell, column: Column) -> str:
    """The text of a cell: `column.digits` significant digits of a float, no exponent unless tiny or huge."""
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float):
        return rounded(cell, column.digits)
    return str(cell)


def visible(table: Table) -> tuple[int, ...]:
    """Places of the columns that people see: "NAME low" and "NAME high" stand in the cells of NAME."""
    names = [column.name for column in table.columns]
    bounds = {bound for name in names for bound in bounds_of(name)}
    return tuple(place for place, name in enumerate(names) if name not in bounds)


def shown_at(table: Table, row: Sequence[Cell], place: int) -> str:
    """The text of a cell, with its interval where the table states one: `25.76 [21.19, 30.33]`."""
    column = table.columns[place]
    text = shown(row[place], column)
    cells = {other.name: cell for other, cell in zip(table.columns, row, strict=True)}
    low, high = (cells.get(bound) for bound in bounds_of(column.name))
    if low is None or high is None:
        return text
    return f"{text} [{shown(low, column)}, {shown(high, column)}]"


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


def heading(column: Column) -> str:
    """The text above a column: its name, unit, and the arrow of what is better."""
    unit = f" ({column.unit})" if column.unit else ""
    return f"{column.name}{unit}{_ARROWS[column.better]}"
