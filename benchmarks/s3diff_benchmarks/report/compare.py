"""Compares two reports: what became worse, better, new or gone, beyond the noise of the measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from s3diff_benchmarks.report.model import Cell, Column, Report, Table, interval_of

Verdict = Literal["regression", "improvement", "within noise", "unchanged", "new", "gone"]

_MEDIAN = "median"
_TIMED = re.compile(r"(^|/)(s|ms|µs)$")
"""Units of times and rates."""


@dataclass(frozen=True)
class Change:
    """One figure in two reports; `table`, `row` and `column` say which."""

    table: str
    row: tuple[Cell, ...]
    """Its key. Empty where a whole table is new or gone."""
    column: str
    """Empty where a whole row or table is new or gone."""
    old: float | None
    new: float | None
    percent: float | None
    """By which it became worse; negative where it became better, None where there is no such share."""
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """All that two reports have in common, and what only one of them has."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    def of(self, *verdicts: Verdict) -> tuple[Change, ...]:
        """The changes with one of these verdicts, the largest first."""
        found = [change for change in self.changes if change.verdict in verdicts]
        return tuple(sorted(found, key=lambda change: -abs(change.percent or 0)))

    def regressions(self, above: float = 0.0) -> tuple[Change, ...]:
        """Regressions beyond noise by more than that many percent; those of no known share are among them."""
        return tuple(
            change for change in self.of("regression") if change.percent is None or change.percent > above
        )


def compare_reports(old: Report, new: Report) -> Comparison:
    """Match tables by name, rows by their key, columns by name, and judge those that can be better or worse.

    Columns "low" and "high" state the interval of "median", and "NAME low" and "NAME high" that of NAME: such
    a figure changed only where the intervals do not overlap. Other times and rates of a row with a median,
    such as p99, have no interval and change only where the median does. Bounds are not judged themselves.
    """
    tables_old, tables_new = ({table.name: table for table in report.tables} for report in (old, new))
    changes: list[Change] = []
    for name in dict.fromkeys([*tables_old, *tables_new]):
        if name not in tables_new:
            changes.append(Change(name, (), "", None, None, None, "gone"))
        elif name not in tables_old:
            changes.append(Change(name, (), "", None, None, None, "new"))
        else:
            changes += _compare_tables(tables_old[name], tables_new[name])
    return Comparison(tuple(changes), tuple(_warnings(old, new)))


def _compare_tables(old: Table, new: Table) -> Iterator[Change]:
    rows_old, rows_new = _rows(old), _rows(new)
    columns = [column for column in new.columns[new.key :] if column.better]
    for key in dict.fromkeys([*rows_old, *rows_new]):
        if key not in rows_new:
            yield Change(new.name, key, "", None, None, None, "gone")
        elif key not in rows_old:
            yield Change(new.name, key, "", None, None, None, "new")
        else:
            for column in columns:
                yield from _compare_cells(new.name, key, column, rows_old[key], rows_new[key])


def _compare_cells(
    table: str, key: tuple[Cell, ...], column: Column, old: Mapping[str, Cell], new: Mapping[str, Cell]
) -> Iterator[Change]:
    before, after = _number(old.get(column.name)), _number(new.get(column.name))
    if _is_bound(column.name, new) or (before is None and after is None):
        return
    if before is None or after is None:
        yield Change(table, key, column.name, before, after, None, "new" if before is None else "gone")
        return
    worse = after - before if column.better == "lower" else before - after
    percent = None if before == 0 else 100 * worse / abs(before)
    if worse == 0:
        verdict: Verdict = "unchanged"
        percent = 0.0
    elif _overlap(*(_interval(_witness(column, row), row) for row in (old, new))):
        verdict = "within noise"
    else:
        verdict = "regression" if worse > 0 else "improvement"
    yield Change(table, key, column.name, before, after, percent, verdict)


def _rows(table: Table) -> dict[tuple[Cell, ...], dict[str, Cell]]:
    """Rows by their key; where a key comes twice, the later ones get a number."""
    names = [column.name for column in table.columns]
    rows: dict[tuple[Cell, ...], dict[str, Cell]] = {}
    for row in table.rows:
        key, count = row[: table.key], 2
        while key in rows:
            key, count = (*row[: table.key], f"#{count}"), count + 1
        rows[key] = dict(zip(names, row, strict=True))
    return rows


def _is_bound(name: str, row: Mapping[str, Cell]) -> bool:
    return any(name in interval_of(other) for other in row)


def _witness(column: Column, row: Mapping[str, Cell]) -> str:
    """The figure whose interval decides about a column: its own, or the median's where it has none."""
    has_own = all(bound in row for bound in interval_of(column.name))
    has_median = all(name in row for name in (_MEDIAN, *interval_of(_MEDIAN)))
    return _MEDIAN if has_median and not has_own and _TIMED.search(column.unit) else column.name


def _interval(name: str, row: Mapping[str, Cell]) -> tuple[float, float]:
    """A figure's interval; the figure itself where the report states none."""
    value, low, high = (_number(row.get(column)) for column in (name, *interval_of(name)))
    middle = math.nan if value is None else value
    return (middle if low is None else low, middle if high is None else high)


def _overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _number(cell: Cell) -> float | None:
    return float(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else None


def _warnings(old: Report, new: Report) -> Iterator[str]:
    if old.kind != new.kind:
        yield f"the reports are of different kinds: {old.kind} and {new.kind}"
    if old.machine.name != new.machine.name:
        yield f"the machines differ: {old.machine.name} and {new.machine.name}"
    if old.machine.packages != new.machine.packages:
        both = sorted({*old.machine.packages.items()} ^ {*new.machine.packages.items()})
        yield f"the packages differ: {', '.join(dict.fromkeys(name for name, _ in both))}"
    hashes = [sorted(bundle.manifest_sha256 for bundle in report.bundles) for report in (old, new)]
    if hashes[0] != hashes[1]:
        names = [", ".join(bundle.name for bundle in report.bundles) or "none" for report in (old, new)]
        yield f"the bundles differ: {names[0]} and {names[1]}"
    if old.options != new.options:
        yield "the options differ"
    for which, report in (("old", old), ("new", new)):
        if report.machine.load > report.machine.cores / 2:
            cores = f"{report.machine.load} programs running on {report.machine.cores} cores"
            yield f"the {which} machine was busy before: {cores}"
