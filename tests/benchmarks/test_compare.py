"""Comparison of reports: what counts as a change, and how the command ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.benchmarks.reports import MACHINE, report, table

from s3diff_benchmarks.report.compare import Change, Comparison, compare_reports
from s3diff_benchmarks.report.model import Cell, Column, Report
from s3diff_benchmarks.report.output import Output, write_report
from s3diff_export import cli

Row = tuple[Cell, ...]
OLD: Row = ("a", 1.0, 0.98, 1.02, 1.3, 500)


def compared(old: Row, new: Row) -> dict[str, Change]:
    found = compare_reports(report(table(old)), report(table(new)))
    return {change.column: change for change in found.changes}


@pytest.mark.parametrize(
    ("new", "verdict", "percent"),
    [
        (("a", 1.0, 0.97, 1.01, 1.3, 500), "unchanged", 0.0),
        (("a", 1.03, 1.01, 1.05, 1.3, 500), "within noise", 3.0),
        (("a", 1.06, 1.03, 1.09, 1.3, 500), "regression", 6.0),
        (("a", 0.90, 0.88, 0.97, 1.3, 500), "improvement", -10.0),
        (("a", 1.02, 1.02, 1.02, 1.3, 500), "within noise", 2.0),
    ],
)
def test_a_median_changed_only_where_intervals_do_not_overlap(new: Row, verdict: str, percent: float) -> None:
    change = compared(OLD, new)["median"]
    assert change.verdict == verdict
    assert change.percent == pytest.approx(percent)


def test_times_without_an_interval_follow_the_median_and_memory_does_not() -> None:
    noisy = compared(OLD, ("a", 1.01, 0.99, 1.03, 2.6, 600))
    assert noisy["p99"].verdict == "within noise"
    assert noisy["peak"].verdict == "regression"
    assert noisy["peak"].percent == pytest.approx(20.0)
    assert compared(OLD, ("a", 2.0, 1.9, 2.1, 2.6, 500))["p99"].verdict == "regression"


def test_bounds_themselves_are_not_judged() -> None:
    assert set(compared(OLD, ("a", 1.0, 0.5, 9.0, 1.3, 500))) == {"median", "p99", "peak"}


SCORES = (
    Column(name="method"),
    Column(name="PSNR", unit="dB", better="higher"),
    Column(name="PSNR low", better="higher"),
    Column(name="PSNR high", better="higher"),
    Column(name="LPIPS", better="lower"),
    Column(name="images"),
)


def test_higher_may_be_better_and_figures_may_have_bounds_of_their_own() -> None:
    old, new = (
        report(table(row, name="quality", columns=SCORES))
        for row in (("ours", 26.0, 25.9, 26.1, 0.30, 20), ("ours", 25.0, 24.9, 25.1, 0.27, 10))
    )
    found = {change.column: change for change in compare_reports(old, new).changes}
    assert set(found) == {"PSNR", "LPIPS"}, "what can be neither better nor worse is no change"
    assert found["PSNR"].verdict == "regression"
    assert found["PSNR"].percent == pytest.approx(100 / 26)
    assert found["LPIPS"].verdict == "improvement"


def test_rows_and_tables_come_and_go() -> None:
    old = report(table(OLD, ("b", *OLD[1:])), table(OLD, name="gone"))
    new = report(table(OLD, ("c", *OLD[1:])), table(OLD, name="fresh"))
    found = compare_reports(old, new)
    assert {(change.table, change.row) for change in found.of("gone")} == {("latency", ("b",)), ("gone", ())}
    assert {(change.table, change.row) for change in found.of("new")} == {("latency", ("c",)), ("fresh", ())}
    assert not found.regressions()


def test_a_figure_that_could_not_be_taken_any_more_is_gone() -> None:
    found = compared(OLD, ("a", None, None, None, 1.3, 500))["median"]
    assert (found.verdict, found.old, found.new) == ("gone", 1.0, None)


def test_a_column_that_went_is_gone() -> None:
    before = report(table(OLD))
    short = before.tables[0].model_copy(
        update={"columns": before.tables[0].columns[:-1], "rows": (OLD[:-1],)}
    )
    found = compare_reports(before, before.model_copy(update={"tables": (short,)}))
    assert [(change.column, change.old) for change in found.of("gone")] == [("peak", 500)]


def test_bounds_of_a_column_that_went_are_not_judged() -> None:
    row: Row = ("ours", 26.0, 25.0, 27.0, 0.3, 6)
    before = report(table(row, columns=SCORES))
    rest = before.tables[0].model_copy(
        update={"columns": (SCORES[0], *SCORES[4:]), "rows": (("ours", 0.3, 6),)}
    )
    found = compare_reports(before, before.model_copy(update={"tables": (rest,)}))
    assert [change.column for change in found.of("gone")] == ["PSNR"]


def test_regression_from_zero_counts_and_has_no_share() -> None:
    change = compared(("a", 1.0, 0.9, 1.1, 1.3, 0), ("a", 1.0, 0.9, 1.1, 1.3, 7))["peak"]
    assert (change.verdict, change.percent) == ("regression", None)
    assert Comparison((change,), ()).regressions(above=1000) == [change]


def test_rows_with_one_key_are_matched_in_their_order() -> None:
    old = report(table(OLD, ("a", 5.0, 4.9, 5.1, 1.3, 500)))
    new = report(table(OLD, ("a", 6.0, 5.9, 6.1, 1.3, 500)))
    worse = [change for change in compare_reports(old, new).of("regression") if change.column == "median"]
    assert [change.row for change in worse] == [("a", "#2")]


def test_the_largest_regression_comes_first() -> None:
    old = report(table(OLD, ("b", *OLD[1:])))
    new = report(table(("a", 1.2, 1.1, 1.3, 1.3, 500), ("b", 1.5, 1.4, 1.6, 1.3, 500)))
    assert compare_reports(old, new).regressions()[0].row == ("b",)


def test_what_makes_a_comparison_doubtful_is_told() -> None:
    other = MACHINE.model_copy(update={"processor": "Other", "packages": {"numpy": "2.5.0"}, "load": 1.9})
    bundle = report().bundles[0].model_copy(update={"manifest_sha256": "cd" * 32, "name": "other.bundle"})
    new = report(kind="quality", machine=other, bundles=(bundle,), options={"size": [256]})
    warnings = "\n".join(compare_reports(report(), new).warnings)
    for part in ("kinds", "Test CPU, 2 cores and Other, 2 cores", "numpy", "demo.bundle and other.bundle"):
        assert part in warnings
    assert "options differ" in warnings
    assert "the new machine was busy" in warnings
    assert not compare_reports(report(), report()).warnings


# --- the command ----------------------------------------------------------------------------------


def written(report: Report, folder: Path) -> Path:
    write_report(report, Output(folder))
    return folder


def test_command_fails_on_regressions_above_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = written(report(table(OLD)), tmp_path / "old")
    new = written(report(table(("a", 1.06, 1.03, 1.09, 1.3, 500))), tmp_path / "new") / "report.json"
    arguments = ["bench", "compare", str(old), str(new)]
    assert cli.run(cli.cli, arguments) == 0
    assert "1 worse, 0 better, 2 the same." in capsys.readouterr().out
    assert cli.run(cli.cli, [*arguments, "--fail-on", "7"]) == 0
    assert cli.run(cli.cli, [*arguments, "--fail-on", "5"]) == 1
    assert (
        "error: worse by more than 5 % beyond noise: median of a in latency, +6.0 %"
        in capsys.readouterr().err
    )


def test_command_prints_json_and_still_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = written(report(table(OLD)), tmp_path / "old")
    new = written(report(table(("a", 2.0, 1.9, 2.1, 1.3, 500))), tmp_path / "new")
    assert cli.run(cli.cli, ["bench", "compare", str(old), str(new), "--json", "--fail-on", "5"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [change["verdict"] for change in found["changes"]] == ["regression", "unchanged", "unchanged"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is no report of this version"),
        ('{"format": "s3diff-bench", "revision": 3}', "is no report of this version"),
    ],
)
def test_command_refuses_what_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    old = written(report(table(OLD)), tmp_path / "old")
    damaged = tmp_path / "damaged.json"
    if content is not None:
        damaged.write_text(content)
    assert cli.run(cli.cli, ["bench", "compare", str(old), str(damaged)]) == 2
    assert message in capsys.readouterr().err
