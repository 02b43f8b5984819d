"""Folders of reports: what is in them, when they are replaced, and what the terminal shows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.benchmarks.reports import COLUMNS, HOSTILE, report, table

from s3diff_benchmarks.report.model import Column, Picture, Plot, Report, Table
from s3diff_benchmarks.report.output import Output, read_report, show_report, write_report
from s3diff_benchmarks.report.plots import draw, label, series_of
from s3diff_benchmarks.report.rendering import fenced, render, rounded, shown, shown_table
from s3diff_runtime.command_line import takes
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, group, option

ROW = ("a", 1.0, 0.98, 1.02, 1.3, 500)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def full_report(name: str = "a") -> Report:
    plots = (
        Plot(
            name="curve",
            title="Error against bins",
            kind="line",
            table="latency",
            x="peak",
            y="median",
            by="what",
            log_x=True,
            log_y=True,
        ),
    )
    pictures = (Picture(name="pair", title=name, before="small", after="large"),)
    return report(table((name, *ROW[1:])), plots=plots, pictures=pictures, notes=(f"No GPU for {name}.",))


IMAGES = {"small": picture(1), "large": picture(2)}

# --- numbers and headings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0123456, 3, "0.0123"),
        (1.0, 3, "1.00"),
        (123.456, 3, "123"),
        (12345.6, 3, "12346"),
        (1234.5678, 5, "1234.6"),
        (-0.5, 2, "-0.50"),
        (0.0, 3, "0"),
        (1.5e-7, 3, "1.50e-07"),
        (2.5e12, 2, "2.5e+12"),
        (math.nan, 3, "–"),
        (math.inf, 3, "–"),
    ],
)
def test_numbers_are_rounded_for_people(value: float, digits: int, text: str) -> None:
    assert rounded(value, digits) == text


def test_cells_and_headings() -> None:
    columns = (Column(name="time", unit="ms", better="lower", digits=2), Column(name="PSNR", better="higher"))
    found = shown_table(table((1.234, True), (None, None), columns=columns))
    assert [column.heading for column in found.columns] == ["time (ms) ↓", "PSNR ↑"]
    assert found.numeric == [True, False]
    assert [[cell.text for cell in row] for row in found.rows] == [["1.2", "yes"], ["–", "–"]]
    assert [shown(cell) for cell in (12, "x", False)] == ["12", "x", "no"]


def test_intervals_stand_in_the_cells_of_their_figure() -> None:
    columns = tuple(Column(name=name) for name in ("PSNR", "PSNR low", "PSNR high"))
    found = shown_table(table((25.76, 21.19, 30.33), (25.76, None, None), columns=columns))
    assert [column.heading for column in found.columns] == ["PSNR"]
    assert [row[0].text for row in found.rows] == ["25.8 [21.2, 30.3]", "25.8"]


# --- the folder -----------------------------------------------------------------------------------


def test_folder_holds_everything(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "report"
    write_report(
        full_report(),
        Output(folder, html=True),
        images={**IMAGES, "unused": picture(3)},
        extra={"s.csv": "a,b\n"},
    )
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {"report.json", "report.md", "report.html", "s.csv", "plots/curve.png"}
    assert found == names | {"pictures/small.png", "pictures/large.png"}
    assert read_report(folder) == full_report()
    assert (folder / "s.csv").read_text() == "a,b\n"
    with Image.open(folder / "pictures" / "small.png") as image:
        assert image.tobytes() == IMAGES["small"].tobytes()
    assert [path.name for path in folder.parent.iterdir()] == ["report"], "no temporary folder is left"


def test_page_is_written_only_when_asked_for(tmp_path: Path) -> None:
    write_report(report(), Output(tmp_path / "report"))
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.json", "report.md"]


def test_existing_report_is_replaced_only_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(report(title="one"), Output(folder), extra={"old.csv": "x"})
    with pytest.raises(RequestError, match="pass --force"):
        write_report(report(title="two"), Output(folder))
    assert read_report(folder).title == "one"
    write_report(report(title="two"), Output(folder, force=True))
    assert read_report(folder).title == "two"
    assert not (folder / "old.csv").exists()


@pytest.mark.parametrize("name", ["notes.txt", "report.json", "index.json"])
def test_folders_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"by": "another tool"}')
    with pytest.raises(RequestError, match="no such report; choose another"):
        write_report(report(), Output(tmp_path, force=True))
    assert (tmp_path / name).exists()


def test_links_and_files_in_the_way_are_refused(tmp_path: Path) -> None:
    write_report(report(), Output(tmp_path / "real"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(RequestError, match="choose another"):
            write_report(report(), Output(tmp_path / name, force=True))


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    write_report(report(), Output(tmp_path))
    assert read_report(tmp_path) == report()


def test_failure_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    write_report(report(title="one"), Output(folder))

    def fail(*_: object) -> bytes:
        raise RuntimeError("drawing")

    monkeypatch.setattr("s3diff_benchmarks.report.plots.draw", fail)
    with pytest.raises(RuntimeError, match="drawing"):
        write_report(full_report(), Output(folder, force=True), images=IMAGES)
    assert read_report(folder).title == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_missing_images_and_wrong_names_are_told_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="large"):
        write_report(full_report(), Output(tmp_path / "r"), images={"small": picture(1)})
    for name in ("../x.csv", "report.json", "plots", "", ".hidden"):
        with pytest.raises(ValueError, match="extra file"):
            write_report(report(), Output(tmp_path / "r"), extra={name: "x"})
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_null_in_json(tmp_path: Path) -> None:
    write_report(report(table(("a", math.nan, None, math.inf, 1.0, 1))), Output(tmp_path))
    rows = json.loads((tmp_path / "report.json").read_text())["tables"][0]["rows"]
    assert rows == [["a", None, None, None, 1.0, 1]]


# --- Markdown -------------------------------------------------------------------------------------


def test_markdown_shows_all_that_a_reader_needs() -> None:
    text = render("report.md", report=full_report())
    for part in (
        "# Latency",
        "2026-01-02 03:04 UTC, on Test CPU, 2 cores, in 12.3 s.",
        "| what | median (s) ↓ | low (s) | high (s) | p99 (s) ↓ | peak (MiB) ↓ |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 1.00 | 0.980 | 1.02 | 1.30 | 500 |",
        "Taken in rounds.",
        "![Error against bins](plots/curve.png)",
        "![small](pictures/small.png) ![large](pictures/large.png)",
        "- No GPU for a.",
        "- packages: numpy 2.4.0",
        "demo.bundle: dynamic, fp16; made by s3diff-export 0.1.0, manifest abababababababab",
        "s3diff-export bench latency demo.bundle",
        '"size"',
    ):
        assert part in text


def test_markdown_survives_hostile_names() -> None:
    lines = render("report.md", report=full_report(HOSTILE)).splitlines()
    row = next(line for line in lines if "500" in line and line.startswith("|"))
    assert row.replace("\\|", "").count("|") == len(COLUMNS) + 1
    assert not [line for line in lines if line.replace("\\<", "").count("<script>") and "options" not in line]
    assert render("report.md", report=report(table(("two\n# lines", *ROW[1:])))).count("\n# ") == 0


@pytest.mark.parametrize("text", ["plain", "a ``` b", "````", "x `y`"])
def test_code_ends_only_at_its_fence(text: str) -> None:
    first, *_, last = fenced(text).splitlines()
    assert first == last
    assert set(first) == {"`"}
    assert len(first) >= 3
    assert first not in text


# --- plots ----------------------------------------------------------------------------------------

NAMES = ("a bundle with a name that is long", "$\\frac{", "_hidden", HOSTILE)
CEILINGS = Table(
    name="ceilings",
    title="Ceilings",
    columns=(Column(name="what"), Column(name="measured")),
    rows=(("matrix product", 8.0), ("copy", 100.0)),
)


def curves(x: tuple[str | float, ...], bounded: bool = True) -> dict[str, Table]:
    """A table with five curves over some numbers or names, and that of the ceilings."""
    columns = (*COLUMNS[:1], Column(name="at"), *COLUMNS[1 : 4 if bounded else 2])
    rows = (
        (name, at, *(factor * y for factor in (1, 0.9, 1.2)[: 3 if bounded else 1]))
        for name in ("ceiling", *NAMES)
        for at, y in zip(x, (0.1, 0.5, 0.3, 0.9), strict=True)
    )
    return {"latency": table(*rows, columns=columns), "ceilings": CEILINGS}


def a_plot(**changes: Any) -> Plot:  # noqa: ANN401
    fields = {"name": "p", "title": "$\\frac{", "kind": "line", "table": "latency", "x": "at", "y": "median"}
    return Plot(**{**fields, "by": "what", **changes})


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("line", False),
        ("line", True),
        ("bar", True),
        ("scatter", False),
        ("scatter", True),
        ("roofline", False),
    ],
)
@pytest.mark.parametrize("bounded", [False, True])
def test_plots_are_drawn(kind: str, bounded: bool, named: bool) -> None:
    tables = curves(NAMES if named else (1.0, 2.0, 4.0, 8.0), bounded)
    plot = a_plot(kind=kind, log_y=True)
    drawn = draw(plot, tables)
    assert drawn.startswith(b"\x89PNG")
    assert draw(plot.model_copy(update={"where": {"what": NAMES}}), tables) != drawn


def test_series_are_read_from_the_table_with_their_intervals() -> None:
    tables = curves((1, 2, 4, 8))
    first, *_ = series_of(a_plot(where={"what": "ceiling", "at": (1, 8)}), tables)
    assert (first.name, first.x, first.y) == ("ceiling", (1, 8), (0.1, 0.9))
    assert first.low == pytest.approx((0.09, 0.81))
    assert first.high == pytest.approx((0.12, 1.08))
    named = series_of(a_plot(x=("what", "at"), y=("median", "low"), by="at"), tables)
    assert [series.name for series in named[:3]] == ["at 1, median", "at 1, low", "at 2, median"]
    assert named[0].x[0] == "ceiling × 1"
    assert named[1].low is None, "an interval is of the median alone"
    assert [series.name for series in series_of(a_plot(by=""), tables)] == ["median"]


def test_rows_without_a_figure_are_not_drawn() -> None:
    row = ("a", 1.0, None, None, 1.3, 500)
    (series,) = series_of(
        a_plot(x="peak"), {"latency": table(row, ("a", None, 1, 1, 1, 7), ("b", math.inf, 1, 1, 1, 7))}
    )
    assert (series.x, series.low) == ((500,), None)


def test_axes_are_named_by_their_columns() -> None:
    tables = curves((1, 2, 4, 8))
    assert label("", ("median", "low"), tables["latency"]) == "median, low (s)"
    assert label("waiting", "median", tables["latency"]) == "waiting"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "other"}, "table other is missing"),
        ({"y": "mean", "where": {"size": 3}}, r"columns \['at', 'mean', 'size'\]"),
        ({"x": "peak", "kind": "roofline"}, "needs the table ceilings"),
    ],
)
def test_plots_of_what_is_not_in_the_report_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(table(ROW), plots=(a_plot(**changes),))


def test_reports_of_revision_1_are_read_without_their_plots(tmp_path: Path) -> None:
    old = json.loads(full_report().model_dump_json()) | {"revision": 1}
    old["plots"] = [
        {"name": "p", "title": "P", "kind": "line", "series": [{"name": "s", "x": [1], "y": [2]}]}
    ]
    (tmp_path / "report.json").write_text(json.dumps(old))
    assert read_report(tmp_path) == full_report().model_copy(update={"plots": ()})


# --- the terminal and the options -----------------------------------------------------------------


def test_showing_shows_tables_and_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report(table(("[red]a", *ROW[1:])), notes=("No [GPU].",)), Output(tmp_path / "r"))
    out = capsys.readouterr().out
    assert "[red]a" in out
    assert "Seconds for one call" in out
    assert "No [GPU]." in out
    assert out.endswith(f"{tmp_path / 'r'}\n")


def test_showing_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report(), Output(tmp_path / "r", as_json=True))
    assert Report.model_validate_json(capsys.readouterr().out) == report()


def test_output_without_a_folder_is_only_for_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_report(report(), Output())
    assert not list(tmp_path.iterdir())
    for html in (True, False):
        with pytest.raises(RequestError, match="--output"):
            Output(html=html, force=not html)


def test_options_become_an_output(tmp_path: Path) -> None:
    taken: list[tuple[int | None, Output]] = []

    @dataclass(frozen=True)
    class Request(Options):
        size: int | None = option(None, "Of something.")
        output: Output = group(Output)

    @click.command()
    @takes(Request)
    def command(request: Request) -> None:
        """Measure."""
        taken.append((request.size, request.output))

    arguments = ["--size", "3", "-o", str(tmp_path), "--html", "--json"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert CliRunner().invoke(command, []).exit_code == 0
    assert taken[0] == (3, Output(tmp_path, html=True, as_json=True))
    assert taken[1][1] == Output()
    assert "--force" in CliRunner().invoke(command, ["--help"]).output
