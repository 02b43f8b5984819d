"""How figures are shown to people: rounded, with units and arrows, the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from s3diff_benchmarks.report.model import Cell, Column, Table, bounds_of, figure_in

NOTHING = "–"
"""Stands where there is no figure."""

_ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


@dataclass(frozen=True)
class ShownColumn:
    """What people see above a column."""

    name: str
    """With the arrow of what is better."""
    heading: str
    """Name, unit and arrow in one."""
    unit: str
    numeric: bool

    @classmethod
    def of(cls, column: Column, cells: Sequence[ShownCell]) -> ShownColumn:
        """The heading of a column with those cells."""
        arrow, unit = _ARROWS[column.better], f" ({column.unit})" if column.unit else ""
        numeric = any(cell.is_number for cell in cells)
        return cls(f"{column.name}{arrow}", f"{column.name}{unit}{arrow}", column.unit, numeric)


@dataclass(frozen=True)
class ShownCell:
    """A cell, and what people see of it."""

    value: Cell
    text: str

    @property
    def is_number(self) -> bool:
        """Whether rows can be put in the order of its value."""
        return figure_in(self.value) is not None


@dataclass(frozen=True)
class ShownTable:
    """What people see of a table: "NAME low" and "NAME high" stand in the cells of NAME."""

    title: str
    note: str
    columns: tuple[ShownColumn, ...]
    rows: tuple[tuple[ShownCell, ...], ...]

    @classmethod
    def of(cls, table: Table) -> ShownTable:
        """All of a table, as text."""
        names = {column.name for column in table.columns}
        bounds = {bound for name in names for bound in bounds_of(name)}
        columns = [column for column in table.columns if column.name not in bounds]
        rows = tuple(tuple(_shown_cell(column, row) for column in columns) for row in table.records)
        heads = (ShownColumn.of(column, [row[at] for row in rows]) for at, column in enumerate(columns))
        return cls(table.title, table.note, tuple(heads), rows)


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


def _shown_cell(column: Column, row: Mapping[str, Cell]) -> ShownCell:
    """A cell with its interval where the row states one: `25.76 [21.19, 30.33]`."""
    text = shown(row[column.name], column.digits)
    low, high = (row.get(bound) for bound in bounds_of(column.name))
    if low is not None and high is not None:
        text = f"{text} [{shown(low, column.digits)}, {shown(high, column.digits)}]"
    return ShownCell(row[column.name], text)
