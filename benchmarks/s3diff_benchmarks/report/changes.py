"""All of `bench compare`: shows what changed between two reports, and fails where too much became worse."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3diff_benchmarks.report.compare import Change, Comparison, Verdict, compare_reports
from s3diff_benchmarks.report.figures import NOTHING, rounded
from s3diff_benchmarks.report.reading import read_report
from s3diff_runtime.errors import JobError
from s3diff_runtime.options import Options, argument, option

_SHOWN: tuple[Verdict, ...] = ("regression", "improvement", "new", "gone")


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
    worse = () if fail_on is None else found.regressions(above=fail_on)
    if worse:
        first = worse[0]
        more = f" and {len(worse) - 1} more" if len(worse) > 1 else ""
        raise JobError(
            f"worse by more than {fail_on:g} % beyond noise: "
            f"{first.column} of {_row(first)} in {first.table}, {_share(first)}{more}"
        )


def _show(found: Comparison) -> None:
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    table = Table(title="Changes beyond noise")
    for heading in ("", "table", "row", "figure", "old", "new", "worse by"):
        table.add_column(heading, overflow="fold")
    for change in found.of(*_SHOWN):
        figures = (NOTHING if value is None else rounded(value, 4) for value in (change.old, change.new))
        texts = (change.verdict, change.table, _row(change), change.column, *figures, _share(change))
        table.add_row(*map(escape, texts))
    console = Console(highlight=False)
    if table.row_count:
        console.print(table)
    same = len(found.of("within noise", "unchanged"))
    console.print(
        f"{len(found.of('regression'))} worse, {len(found.of('improvement'))} better, {same} the same."
    )


def _row(change: Change) -> str:
    return ", ".join(map(str, change.row)) or "all rows"


def _share(change: Change) -> str:
    return NOTHING if change.percent is None else f"{change.percent:+.1f} %"
