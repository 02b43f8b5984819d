"""Writes a report: a folder of JSON, Markdown, plots, pictures and a page; and tables on the terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import click
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from s3diff_benchmarks.report.figures import ShownTable
from s3diff_benchmarks.report.model import Report
from s3diff_benchmarks.report.output import JSON_NAME, Output
from s3diff_benchmarks.report.rendering import to_markdown, to_page
from s3diff_runtime.files import replacing

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"
_PLAIN_WIDTH = 160
"""Letters in a line of a file or pipe, which has no width of its own."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NONE: Mapping[str, str] = MappingProxyType({})
_NO_IMAGES: Mapping[str, Image.Image] = MappingProxyType({})


def write_report(
    report: Report,
    output: Output,
    images: Mapping[str, Image.Image] = _NO_IMAGES,
    extra: Mapping[str, str] = _NONE,
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
    named = {name for picture in report.pictures for name in (picture.before, picture.after)}
    if named - images.keys():
        raise ValueError(f"pictures of {report.kind} without an image: {sorted(named - images.keys())}")
    taken = {JSON_NAME, MARKDOWN_NAME, HTML_NAME, "plots", "pictures"}
    wrong = [name for name in extra if name in taken or not _PLAIN_NAME.fullmatch(name)]
    if wrong:
        raise ValueError(f"names that an extra file cannot have: {wrong}")
    with replacing(output.folder) as partial:
        partial.mkdir()
        _write_files(report, partial, output.html, {name: images[name] for name in sorted(named)}, extra)


def _write_files(
    report: Report, folder: Path, html: bool, images: Mapping[str, Image.Image], extra: Mapping[str, str]
) -> None:
    texts = {
        JSON_NAME: report.model_dump_json(indent=2) + "\n",
        MARKDOWN_NAME: to_markdown(report),
        **extra,
    }
    if report.plots:
        from s3diff_benchmarks.report.plots import draw  # matplotlib takes a second to load

        tables = {table.name: table for table in report.tables}
        (folder / "plots").mkdir()
        for plot in report.plots:
            (folder / "plots" / f"{plot.name}.png").write_bytes(draw(plot, tables))
    if images:
        (folder / "pictures").mkdir()
    for name, image in images.items():
        image.save(folder / "pictures" / f"{name}.png")
    if html:
        texts[HTML_NAME] = to_page(report, folder)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def show_report(report: Report, output: Output) -> None:
    """Show the report on standard output, and where it was written."""
    if output.as_json:
        click.echo(report.model_dump_json(indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    for table in report.tables:
        console.print(_terminal_table(ShownTable.of(table)))
    for note in report.notes:
        console.print(note, markup=False)
    if output.folder is not None:
        click.echo(output.folder)


def _terminal_table(table: ShownTable) -> RichTable:
    drawn = RichTable(title=escape(table.title), caption=escape(table.note))
    for column in table.columns:
        justify: Literal["right", "left"] = "right" if column.numeric else "left"
        drawn.add_column(escape(column.heading), justify=justify, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(escape(cell.text) for cell in row))
    return drawn
