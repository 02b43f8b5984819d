"""A report as one page that opens from disk: no network, no other file, and no trust in any name.

The page is `page.html` with `page.js` in it. Every text is escaped, and a content security policy lets only
that script run.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image

from s3diff_benchmarks.report.figures import heading, rounded, shown_at, visible
from s3diff_benchmarks.report.markdown import bundle_facts, machine_facts, moment
from s3diff_benchmarks.report.model import Cell, Column, Picture, Plot, Report, Table


def to_page(report: Report, folder: Path) -> str:
    """The page as HTML.

    Args:
        report: what it shows.
        folder: where the report's plots/ and pictures/ were written.
    """
    return fill(report.title, _body(report, folder))


def fill(title: str, blocks: Iterable[str]) -> str:
    """The house's page around blocks of HTML; `title` is plain text."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_resource("page.html")).substitute(
        title=escape(title), body="\n".join(blocks), script=script, script_hash=f"sha256-{digest}"
    )


@cache
def _resource(name: str) -> str:
    return (files("s3diff_benchmarks.report") / name).read_text(encoding="utf-8")


def _body(report: Report, folder: Path) -> Iterator[str]:
    yield f"<h1>{escape(report.title)}</h1>"
    yield f'<p class="facts">{escape(report.machine.name)} · {escape(moment(report.created))} · '
    yield f"{escape(rounded(report.seconds))} s</p>"
    yield f"<pre>{escape(report.command)}</pre>"
    for table in report.tables:
        yield from table_blocks(table)
    if report.plots:
        yield '<h2>Plots</h2>\n<div class="plots">'
        yield from (_plot(plot, folder) for plot in report.plots)
        yield "</div>"
    if report.pictures:
        yield '<h2>Pictures</h2>\n<div class="pictures">'
        yield from (_picture(picture, folder) for picture in report.pictures)
        yield "</div>"
    if report.notes:
        yield f"<h2>Notes</h2>\n<ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>"
    yield "<h2>How it was measured</h2>"
    yield from _circumstances(report)


def table_blocks(table: Table, level: int = 2) -> Iterator[str]:
    """A table under its title, a heading of that level, with its note; its headings sort it."""
    yield f"<h{level}>{escape(table.title)}</h{level}>"
    places = visible(table)
    numeric = {place: any(_is_number(row[place]) for row in table.rows) for place in places}
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
    yield "<table><thead><tr>"
    yield from (_heading(table.columns[place], numeric[place]) for place in places)
    yield "</tr></thead><tbody>"
    for row in table.rows:
        cells = (_cell(row[place], shown_at(table, row, place), numeric[place]) for place in places)
        yield f"<tr>{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    if table.note:
        yield f'<p class="note">{escape(table.note)}</p>'


def _heading(column: Column, numeric: bool) -> str:
    kind = ' class="number"' if numeric else ""
    name = heading(column.model_copy(update={"unit": ""}))
    unit = f'<span class="unit">{escape(column.unit)}</span>' if column.unit else ""
    return f'<th scope="col"{kind}><button type="button">{escape(name)}</button>{unit}</th>'


def _cell(cell: Cell, text: str, numeric: bool) -> str:
    """A cell that sorts by its exact value."""
    kind = ' class="number"' if numeric else ""
    value = f' data-value="{cell!r}"' if _is_number(cell) else " data-none" if cell is None else ""
    return f"<td{kind}{value}>{escape(text)}</td>"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _plot(plot: Plot, folder: Path) -> str:
    data = _data("png", (folder / "plots" / f"{plot.name}.png").read_bytes())
    return f'<figure><img src="{data}" alt="{escape(plot.title)}" loading="lazy"></figure>'


def _picture(picture: Picture, folder: Path) -> str:
    title = escape(picture.title)
    after = _image(folder, picture.after)
    if picture.before == picture.after:
        return f'<figure><img src="{after}" alt="{title}"><figcaption>{title}</figcaption></figure>'
    before = _image(folder, picture.before)
    return (
        f'<figure><div class="slider"><img src="{after}" alt="{escape(picture.after)}">'
        f'<img class="over" src="{before}" alt="{escape(picture.before)}">'
        f'<span class="left">{escape(picture.before)}</span>'
        f'<span class="right">{escape(picture.after)}</span></div>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{title}: share of the image before">'
        f"<figcaption>{title}</figcaption></figure>"
    )


def _image(folder: Path, name: str) -> str:
    """The same pixels in fewer bytes."""
    file = io.BytesIO()
    with Image.open(folder / "pictures" / f"{name}.png") as image:
        image.save(file, "WEBP", lossless=True)
    return _data("webp", file.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _circumstances(report: Report) -> Iterator[str]:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in machine_facts(report.machine)
    )
    yield f"<details><summary>Machine</summary><dl>{facts}</dl></details>"
    if report.bundles:
        bundles = "".join(f"<li>{escape(bundle_facts(bundle))}</li>" for bundle in report.bundles)
        yield f"<details><summary>Bundles</summary><ul>{bundles}</ul></details>"
    options = escape(json.dumps(report.options, indent=2, ensure_ascii=False))
    yield f"<details><summary>Options</summary><pre>{options}</pre></details>"
