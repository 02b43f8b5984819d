"""Where the report of a benchmark goes: a folder of JSON, Markdown, plots, pictures and a page; the terminal.

A folder is replaced only where a benchmark wrote it, and read back with care: it may come from anywhere.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import click
from PIL import Image
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from s3diff_benchmarks.report.model import Report, Table
from s3diff_benchmarks.report.rendering import embedded, render, shown_table
from s3diff_runtime.errors import RequestError, first_few, wrong_fields
from s3diff_runtime.files import is_vacant, replacing
from s3diff_runtime.options import Options, option

JSON_NAME = "report.json"
MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
FORMAT = "s3diff-bench"
"""How a report, or an index of reports, says what it is, in its first field."""
_HEAD = 64
"""Bytes of a file that hold its first field."""
_MOST_BYTES = 64 * 2**20
"""Of a report that is read."""
_PLAIN_WIDTH = 160
"""Letters in a line of a file or pipe, which has no width of its own."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Output(Options):
    """Where a report goes."""

    folder: Path | None = option(
        None,
        "Folder to make, for the report as JSON, Markdown and plots; else only the terminal.",
        flags=("-o", "--output"),
    )
    force: bool = option(False, "Replace the report in that folder.")
    html: bool = option(False, "Also write report.html, one page that opens from disk.")
    as_json: bool = option(False, "Print the report as JSON.", flags=("--json",))

    def problems(self) -> Iterator[str]:
        """What does not go together."""
        if self.folder is None and (self.html or self.force):
            yield "--html and --force are about a folder; name one with --output"

    def check_folder(self, marker: str = JSON_NAME) -> None:
        """Refuse a folder that is in the way; to be called before any work.

        Raises `RequestError` where it holds other things than `marker`, a file that a benchmark wrote, and
        where it holds that but `force` does not give it up.
        """
        folder = self.folder
        linked = folder is not None and folder.is_symlink()
        if folder is None or (is_vacant(folder) and not linked):
            return
        if linked or not _is_ours(folder / marker):
            raise RequestError(f"{folder} exists and is no such report; choose another folder")
        if not self.force:
            raise RequestError(f"{folder} holds a report; pass --force to replace it")


def _is_ours(marker: Path) -> bool:
    """Whether a benchmark wrote the file, so that its folder may be replaced."""
    if not marker.is_file():
        return False
    with marker.open("rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(_HEAD)


def read_report(path: Path) -> Report:
    """The report in a file, or in the folder that a benchmark wrote.

    Raises `RequestError` when there is none, or it is too large, damaged or of another revision.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        if file.stat().st_size > _MOST_BYTES:
            most = f"{_MOST_BYTES >> 20} MiB"
            raise RequestError(f"{file} has more than {most}; expected a report of s3diff-export bench")
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RequestError(f"cannot read {file}: {error.strerror or error}; expected {JSON_NAME}") from error
    except ValidationError as error:
        told = first_few(wrong_fields(error), "; ")
        raise RequestError(f"{file} is no report of this version: {told}") from error


def write_report(
    report: Report,
    output: Output,
    images: Mapping[str, Image.Image] = MappingProxyType({}),
    extra: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write report.json, report.md, plots/, pictures/, the extra files and report.html; all or nothing.

    Args:
        report: what was found.
        output: where to write it; nothing is written without a folder.
        images: RGB, by the names that the report's pictures use.
        extra: the texts of more files, such as a CSV, by name.

    Raises:
        RequestError: when the folder is in the way.
        ValueError: when an image is missing, or the name of an extra file is not a plain one of its own.
        JobError: when the disk refuses.
    """
    if output.folder is None:
        return
    output.check_folder()
    named = sorted({name for picture in report.pictures for name in (picture.before, picture.after)})
    if missing := [name for name in named if name not in images]:
        raise ValueError(f"pictures of {report.kind} without an image: {missing}")
    taken = {JSON_NAME, MARKDOWN_NAME, HTML_NAME, "plots", "pictures"}
    if wrong := [name for name in extra if name in taken or not _PLAIN_NAME.fullmatch(name)]:
        raise ValueError(f"names that an extra file cannot have: {wrong}")
    texts = {
        JSON_NAME: report.model_dump_json(indent=2) + "\n",
        MARKDOWN_NAME: render("report.md", report=report),
        **extra,
    }
    with replacing(output.folder) as folder:
        folder.mkdir()
        if report.plots:
            _draw_plots(report, folder / "plots")
        if named:
            (folder / "pictures").mkdir()
        for name in named:
            images[name].save(folder / "pictures" / f"{name}.png")
        if output.html:
            texts[HTML_NAME] = render(
                "report.html", report=report, embedded=functools.partial(embedded, folder)
            )
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


def _draw_plots(report: Report, folder: Path) -> None:
    from s3diff_benchmarks.report.plots import draw  # matplotlib takes a second to load

    tables = {table.name: table for table in report.tables}
    folder.mkdir()
    for plot in report.plots:
        (folder / f"{plot.name}.png").write_bytes(draw(plot, tables))


def show_report(report: Report, output: Output) -> None:
    """Show the report on standard output, and where it was written."""
    if output.as_json:
        click.echo(report.model_dump_json(indent=2))
        return
    console = wide_console()
    for table in report.tables:
        console.print(terminal_table(table))
    for note in report.notes:
        console.print(note, markup=False)
    if output.folder is not None:
        click.echo(output.folder)


def wide_console() -> Console:
    """Standard output for tables; where it is no terminal, which has a width of its own, a wide one."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


def terminal_table(table: Table) -> RichTable:
    """A table for the terminal."""
    columns, numeric, rows = shown_table(table)
    drawn = RichTable(title=escape(table.title), caption=escape(table.note))
    for column, is_number in zip(columns, numeric, strict=True):
        justify: Literal["right", "left"] = "right" if is_number else "left"
        drawn.add_column(escape(column.heading), justify=justify, overflow="fold")
    for row in rows:
        drawn.add_row(*(escape(cell.text) for cell in row))
    return drawn
