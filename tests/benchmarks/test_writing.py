"""Folders of reports: what is in them, when they are replaced, and what the terminal shows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.benchmarks.reports import COLUMNS, HOSTILE, report, table

from s3diff_benchmarks.figures import heading, rounded, shown
from s3diff_benchmarks.markdown import code_block, to_markdown
from s3diff_benchmarks.output_options import output_options
from s3diff_benchmarks.plots import draw
from s3diff_benchmarks.reading import read_report
from s3diff_benchmarks.report import Column, Picture, Plot, Report, Series
from s3diff_benchmarks.writing import Output, publish, write_report
from s3diff_runtime.errors import RequestError

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
            x_label="bins",
            y_label="ε",
            log_x=True,
            log_y=True,
            series=(
                Series(name=name, x=(1, 4, 9), y=(0.3, 0.2, 0.1), low=(0.2, 0.1, 0.05), high=(0.4, 0.3, 0.2)),
            ),
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
    column = Column(name="time", unit="ms", better="lower", digits=2)
    assert heading(column) == "time (ms) ↓"
    assert heading(Column(name="PSNR", better="higher")) == "PSNR ↑"
    assert [shown(cell, column) for cell in (None, True, 12, 1.234, "x")] == ["–", "yes", "12", "1.2", "x"]


# --- the folder -----------------------------------------------------------------------------------


def test_folder_holds_everything(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "report"
    write_report(
        full_report(), folder, html=True, images={**IMAGES, "unused": picture(3)}, extra={"s.csv": "a,b\n"}
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
    write_report(report(), tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.json", "report.md"]


def test_existing_report_is_replaced_only_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    write_report(report(title="one"), folder, extra={"old.csv": "x"})
    with pytest.raises(RequestError, match="pass --force"):
        write_report(report(title="two"), folder)
    assert read_report(folder).title == "one"
    write_report(report(title="two"), folder, force=True)
    assert read_report(folder).title == "two"
    assert not (folder / "old.csv").exists()


@pytest.mark.parametrize("name", ["notes.txt", "report.json", "index.json"])
def test_folders_of_others_are_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"by": "another tool"}')
    with pytest.raises(RequestError, match="no such report; choose another"):
        write_report(report(), tmp_path, force=True)
    assert (tmp_path / name).exists()


def test_links_and_files_in_the_way_are_refused(tmp_path: Path) -> None:
    write_report(report(), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(RequestError, match="choose another"):
            write_report(report(), tmp_path / name, force=True)


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    write_report(report(), tmp_path)
    assert read_report(tmp_path) == report()


def test_failure_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    write_report(report(title="one"), folder)

    def fail(*_: object) -> bytes:
        raise RuntimeError("drawing")

    monkeypatch.setattr("s3diff_benchmarks.plots.draw", fail)
    with pytest.raises(RuntimeError, match="drawing"):
        write_report(full_report(), folder, force=True, images=IMAGES)
    assert read_report(folder).title == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_missing_images_and_wrong_names_are_told_before_writing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="large"):
        write_report(full_report(), tmp_path / "r", images={"small": picture(1)})
    for name in ("../x.csv", "report.json", "plots", "", ".hidden"):
        with pytest.raises(ValueError, match="extra file"):
            write_report(report(), tmp_path / "r", extra={name: "x"})
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_null_in_json(tmp_path: Path) -> None:
    write_report(report(table(("a", math.nan, None, math.inf, 1.0, 1))), tmp_path)
    rows = json.loads((tmp_path / "report.json").read_text())["tables"][0]["rows"]
    assert rows == [["a", None, None, None, 1.0, 1]]


# --- Markdown -------------------------------------------------------------------------------------


def test_markdown_shows_all_that_a_reader_needs() -> None:
    text = to_markdown(full_report())
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
    lines = to_markdown(full_report(HOSTILE)).splitlines()
    row = next(line for line in lines if "500" in line and line.startswith("|"))
    assert row.replace("\\|", "").count("|") == len(COLUMNS) + 1
    assert not [line for line in lines if line.replace("\\<", "").count("<script>") and "options" not in line]
    assert to_markdown(report(table(("two\n# lines", *ROW[1:])))).count("\n# ") == 0


@pytest.mark.parametrize("text", ["plain", "a ``` b", "````", "x `y`"])
def test_code_ends_only_at_its_fence(text: str) -> None:
    first, *_, last = code_block(text).splitlines()
    assert first == last
    assert set(first) == {"`"}
    assert len(first) >= 3
    assert first not in text


# --- plots ----------------------------------------------------------------------------------------

NAMES = ("a bundle with a name that is long", "$\\frac{", "_hidden", HOSTILE)


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
    x = NAMES if named else (1.0, 2.0, 4.0, 8.0)
    y = (0.1, 0.5, 0.3, 0.9)
    low, high = (tuple(v * f for v in y) if bounded else None for f in (0.9, 1.2))
    series = tuple(Series(name=name, x=x, y=y, low=low, high=high) for name in ("ceiling", *NAMES))
    plot = Plot(
        name="p",
        title="$\\frac{",
        kind=kind,  # type: ignore[arg-type]
        x_label="x",
        y_label="y",
        log_y=True,
        series=series,
    )
    drawn = draw(plot)
    assert drawn.startswith(b"\x89PNG")
    other = plot.model_copy(update={"series": series[1:]})
    assert draw(other) != drawn


# --- the terminal and the options -----------------------------------------------------------------


def test_publish_shows_tables_and_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(report(table(("[red]a", *ROW[1:])), notes=("No [GPU].",)), Output(tmp_path / "r"))
    out = capsys.readouterr().out
    assert "[red]a" in out
    assert "Seconds for one call" in out
    assert "No [GPU]." in out
    assert out.endswith(f"{tmp_path / 'r'}\n")


def test_publish_prints_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(report(), Output(tmp_path / "r", json=True))
    assert Report.model_validate_json(capsys.readouterr().out) == report()
    assert (tmp_path / "r" / "report.json").exists()


def test_output_without_a_folder_is_only_for_the_terminal() -> None:
    Output().check()
    for output in (Output(html=True), Output(force=True)):
        with pytest.raises(RequestError, match="--output"):
            output.check()


def test_options_become_an_output(tmp_path: Path) -> None:
    taken: list[tuple[int, Output]] = []

    @click.command()
    @click.option("--size", type=int)
    @output_options
    def command(size: int, output: Output) -> None:
        """Measure."""
        taken.append((size, output))

    arguments = ["--size", "3", "-o", str(tmp_path), "--html", "--json"]
    assert CliRunner().invoke(command, arguments).exit_code == 0
    assert CliRunner().invoke(command, []).exit_code == 0
    assert taken[0] == (3, Output(tmp_path, force=False, html=True, json=True))
    assert taken[1][1] == Output()
    assert "--force" in CliRunner().invoke(command, ["--help"]).output
