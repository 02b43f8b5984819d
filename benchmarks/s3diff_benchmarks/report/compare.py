"""All of `bench compare`: what became worse, better, new or gone from a report to another, beyond noise."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import click

from s3diff_benchmarks.report.model import Cell, Column, Report, Row, Table, figure_in, interval_of
from s3diff_benchmarks.report.output import read_report, terminal_table, wide_console
from s3diff_benchmarks.report.rendering import NOTHING
from s3diff_runtime.errors import JobError
from s3diff_runtime.options import Options, argument, option

T = TypeVar("T")
Verdict = Literal["regression", "improvement", "within noise", "unchanged", "new", "gone"]

_SHOWN: tuple[Verdict, ...] = ("regression", "improvement", "new", "gone")
_MEDIAN = "median"
_TIMED = re.compile(r"(^|/)(s|ms|µs)$")
"""Units of times and rates."""


@dataclass(frozen=True)
class CompareRequest(Options):
    """Which reports, and what is a failure."""

    old: Path = argument("Report, or its folder.")
    new: Path = argument("Report, or its folder.")
    fail_on: float | None = option(
        None,
        "Exit 1 when a figure became worse by more than this, beyond noise.",
        least=0,
        metavar="PERCENT",
    )
    as_json: bool = option(False, "Print every figure as JSON.", flags=("--json",))


@dataclass(frozen=True)
class Change:
    """One figure in two reports; `table`, `row` and `column` say which."""

    table: str
    row: tuple[Cell, ...]
    """Its key. Empty where a whole table is new or gone."""
    column: str
    """Empty where a whole row or table is new or gone."""
    verdict: Verdict
    old: float | None = None
    new: float | None = None
    percent: float | None = None
    """By which it became worse; negative where it became better, None where there is no such share."""

    @property
    def place(self) -> str:
        """Which row it is in, for people."""
        return ", ".join(map(str, self.row)) or "all rows"

    @property
    def share(self) -> str:
        """By how much it became worse, for people."""
        return NOTHING if self.percent is None else f"{self.percent:+.1f} %"


@dataclass(frozen=True)
class Comparison:
    """All that two reports have in common, and what only one of them has."""

    changes: tuple[Change, ...]
    warnings: tuple[str, ...]

    def of(self, *verdicts: Verdict) -> list[Change]:
        """The changes with one of these verdicts, the largest first."""
        found = [change for change in self.changes if change.verdict in verdicts]
        return sorted(found, key=lambda change: -abs(change.percent or 0))

    def regressions(self, above: float = 0.0) -> list[Change]:
        """Regressions beyond noise by more than that many percent; those of no known share are among them."""
        return [each for each in self.of("regression") if each.percent is None or each.percent > above]


def show_changes(request: CompareRequest) -> None:
    """Tell what became worse or better from the report OLD to NEW: report.json files, or their folders.

    A figure with a confidence interval changed only where the two intervals do not overlap.

    \b
      s3diff-export bench compare main/latency/report.json branch/latency/report.json --fail-on 5

    Raises:
        RequestError: for what is no report.
        JobError: when a figure became worse by more than `fail_on`.
    """
    found = compare_reports(read_report(request.old), read_report(request.new))
    if request.as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(found)
    fail_on = request.fail_on
    if fail_on is not None and (worse := found.regressions(above=fail_on)):
        first = worse[0]
        more = f" and {len(worse) - 1} more" if len(worse) > 1 else ""
        raise JobError(
            f"worse by more than {fail_on:g} % beyond noise: "
            f"{first.column} of {first.place} in {first.table}, {first.share}{more}"
        )


def _show(found: Comparison) -> None:
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    headings = ("", "table", "row", "figure", "old", "new", "worse by")
    rows = (
        (each.verdict, each.table, each.place, each.column, each.old, each.new, each.share)
        for each in found.of(*_SHOWN)
    )
    table = Table(
        name="changes",
        title="Changes beyond noise",
        columns=tuple(Column(name=heading, digits=4) for heading in headings),
        rows=tuple(rows),
    )
    console = wide_console()
    if table.rows:
        console.print(terminal_table(table))
    worse, better = len(found.of("regression")), len(found.of("improvement"))
    same = len(found.of("within noise", "unchanged"))
    console.print(f"{worse} worse, {better} better, {same} the same.")


def compare_reports(old: Report, new: Report) -> Comparison:
    """Match tables by name, rows by their key, columns by name, and judge those that can be better or worse.

    Columns "low" and "high" state the interval of "median", and "NAME low" and "NAME high" that of NAME: such
    a figure changed only where the intervals do not overlap. Other times and rates of a row with a median,
    such as p99, have no interval and change only where the median does. Bounds are not judged themselves.
    """
    before, after = ({table.name: table for table in report.tables} for report in (old, new))
    changes: list[Change] = []
    for name, verdict in _matched(before, after):
        if verdict:
            changes.append(Change(name, (), "", verdict))
        else:
            changes += _compare_tables(before[name], after[name])
    return Comparison(tuple(changes), tuple(_warnings(old, new)))


def _matched(old: Mapping[T, object], new: Mapping[T, object]) -> Iterator[tuple[T, Verdict | None]]:
    """All that either has, with what became of it where only one does."""
    for key in dict.fromkeys([*old, *new]):
        yield key, "gone" if key not in new else "new" if key not in old else None


def _compare_tables(old: Table, new: Table) -> Iterator[Change]:
    before, after = _rows(old), _rows(new)
    figures = {column.name: column for column in (*old.columns[old.key :], *new.columns[new.key :])}
    bounds = {bound for name in figures for bound in interval_of(name)}
    columns = [column for name, column in figures.items() if column.better and name not in bounds]
    for key, verdict in _matched(before, after):
        if verdict:
            yield Change(new.name, key, "", verdict)
            continue
        for column in columns:
            same = Change(new.name, key, column.name, "unchanged")
            yield from _compare_cells(same, column, before[key], after[key])


def _compare_cells(same: Change, column: Column, old: Row, new: Row) -> Iterator[Change]:
    """What became of a figure; `same` says which it is."""
    before, after = (figure_in(row.get(column.name)) for row in (old, new))
    if before is None and after is None:
        return
    if before is None or after is None:
        yield replace(same, verdict="new" if before is None else "gone", old=before, new=after)
        return
    worse = after - before if column.better == "lower" else before - after
    percent = 100 * worse / abs(before) if before else None if worse else 0.0
    verdict: Verdict = "regression" if worse > 0 else "improvement" if worse else "unchanged"
    one, other = (_interval(column, row) for row in (old, new))
    if worse and one[0] <= other[1] and other[0] <= one[1]:
        verdict = "within noise"
    yield replace(same, verdict=verdict, old=before, new=after, percent=percent)


def _rows(table: Table) -> dict[tuple[Cell, ...], Row]:
    """Rows by their key; where a key comes twice, the later ones get a number."""
    rows: dict[tuple[Cell, ...], Row] = {}
    for row, record in zip(table.rows, table.records, strict=True):
        key, count = row[: table.key], 2
        while key in rows:
            key, count = (*row[: table.key], f"#{count}"), count + 1
        rows[key] = record
    return rows


def _interval(column: Column, row: Row) -> tuple[float, float]:
    """The interval that decides about a column: its own, or the median's where it has none.

    Where the report states neither, the figure itself.
    """
    has_own = all(bound in row for bound in interval_of(column.name))
    has_median = all(name in row for name in (_MEDIAN, *interval_of(_MEDIAN)))
    witness = _MEDIAN if has_median and not has_own and _TIMED.search(column.unit) else column.name
    value, low, high = (figure_in(row.get(name)) for name in (witness, *interval_of(witness)))
    middle = math.nan if value is None else value
    return (middle if low is None else low, middle if high is None else high)


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
