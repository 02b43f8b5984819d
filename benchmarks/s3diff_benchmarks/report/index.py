"""The index of several reports: index.json, index.md and index.html in the folder above them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from s3diff_benchmarks.report import markdown, page
from s3diff_benchmarks.report.figures import rounded
from s3diff_benchmarks.report.model import Report
from s3diff_benchmarks.report.output import FORMAT, INDEX_NAME
from s3diff_benchmarks.report.reading import read_report
from s3diff_benchmarks.report.writing import HTML_NAME, MARKDOWN_NAME
from s3diff_runtime.files import replacing

_TITLE = "Benchmarks"


@dataclass(frozen=True)
class Finished:
    """A part that ended, one way or another."""

    name: str
    """Of the part, and of its folder where it has a report."""
    seconds: float
    error: str = ""
    """Why it failed; one line."""
    left_out: str = ""
    """Why it was not run; one line."""
    report: bool = False
    """Whether its folder holds a report."""

    @property
    def ok(self) -> bool:
        """Whether it did not fail."""
        return not self.error

    @property
    def state(self) -> str:
        """What became of it, for people."""
        if self.left_out:
            return f"not measured: {self.left_out}"
        return f"failed: {self.error}" if self.error else f"{rounded(self.seconds)} s"


def write_index(folder: Path, command: str, parts: Sequence[Finished], html: bool) -> None:
    """Write the index of `folder`, each file atomically.

    Args:
        folder: holds a folder with a report for every part that has one.
        command: as it was typed.
        parts: in the order in which they are shown.
        html: also write index.html, which leads to the pages of the reports.

    Raises:
        RequestError: when a report cannot be read back.
        JobError: when the disk refuses.
    """
    reports = {part.name: read_report(folder / part.name) for part in parts if part.report}
    texts = {
        INDEX_NAME: json.dumps(
            {"format": FORMAT, "command": command, "parts": [asdict(part) for part in parts]}, indent=2
        ),
        "index.md": "\n\n".join(_markdown(command, parts, reports)),
    }
    if html:
        texts["index.html"] = page.fill(_TITLE, _html(command, parts, reports))
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(f"{text}\n", encoding="utf-8")


def _markdown(command: str, parts: Sequence[Finished], reports: dict[str, Report]) -> Iterator[str]:
    yield f"# {_TITLE}"
    yield markdown.code_block(command)
    for part in parts:
        name = markdown.escaped(part.name)
        if part.name not in reports:
            yield f"## {name}\n\n{markdown.escaped(part.state)}"
            continue
        report = reports[part.name]
        yield f"## [{markdown.escaped(report.title)}]({part.name}/{MARKDOWN_NAME})"
        yield markdown.escaped(part.state)
        for table in report.tables[:1]:
            yield from markdown.table_blocks(table, level=3)


def _html(command: str, parts: Sequence[Finished], reports: dict[str, Report]) -> Iterator[str]:
    yield f"<h1>{_TITLE}</h1>"
    yield f"<pre>{escape(command)}</pre>"
    for part in parts:
        state = f'<p class="facts">{escape(part.state)}</p>'
        if part.name not in reports:
            yield f"<h2>{escape(part.name)}</h2>{state}"
            continue
        report = reports[part.name]
        yield f'<h2><a href="{escape(part.name)}/{HTML_NAME}">{escape(report.title)}</a></h2>{state}'
        for table in report.tables[:1]:
            yield from page.table_blocks(table, level=3)
