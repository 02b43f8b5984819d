"""What people see of reports: figures as text, and all as Markdown and as pages, from the templates beside.

Markdown is readable as text, and in a repository's web view with its plots. A page opens from disk: it needs
no network and no other file, and a content security policy lets only its own script run. Neither trusts any
name: every text that a template shows is escaped, unless it is `Verbatim`.
"""

import base64
import hashlib
import io
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from s3diff_benchmarks.report.model import Cell, Column, Row, Table, bounds_of, figure_in

NOTHING = "–"
"""Stands where there is no figure."""
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#&!$~])")


class ShownCell(NamedTuple):
    """A cell, and what people see of it."""

    value: Cell
    text: str


class ShownTable(NamedTuple):
    """What people see of a table: "NAME low" and "NAME high" stand in the cells of NAME."""

    columns: list[Column]
    numeric: list[bool]
    """Of each column, whether a cell is a number."""
    rows: list[list[ShownCell]]


def shown_table(table: Table) -> ShownTable:
    """All of a table, as text."""
    bounds = {bound for column in table.columns for bound in bounds_of(column.name)}
    columns = [column for column in table.columns if column.name not in bounds]
    rows = [[_shown_cell(column, row) for column in columns] for row in table.records]
    numeric = [any(figure_in(row[at].value) is not None for row in rows) for at in range(len(columns))]
    return ShownTable(columns, numeric, rows)


def shown(cell: Cell, digits: int = 3) -> str:
    """The text of a cell: so many significant digits of a float, no exponent unless tiny or huge."""
    if cell is None:
        return NOTHING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return rounded(cell, digits) if isinstance(cell, float) else str(cell)


def rounded(value: float, digits: int = 3) -> str:
    """A number with that many significant digits; all digits before the point are kept."""
    if not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -5 < magnitude < 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - magnitude, 0)}f}"


def _shown_cell(column: Column, row: Row) -> ShownCell:
    """A cell with its interval where the row states one: `25.76 [21.19, 30.33]`."""
    text = shown(row[column.name], column.digits)
    low, high = (row.get(bound) for bound in bounds_of(column.name))
    if low is not None and high is not None:
        text = f"{text} [{shown(low, column.digits)}, {shown(high, column.digits)}]"
    return ShownCell(row[column.name], text)


class Verbatim(str):
    """Markdown that is shown as it is."""


def render(template: str, **shown: object) -> str:
    """Fill `templates/TEMPLATE.jinja` with what it shows; the page of a report needs `embedded` too."""
    environment = _HTML if template.endswith(".html") else _MARKDOWN
    return environment.get_template(f"{template}.jinja").render(shown) + "\n"


def fenced(text: str) -> Verbatim:
    """A block of code; its fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Verbatim(f"{fence}\n{text}\n{fence}")


def _escaped(text: object) -> str:
    """One line of plain text, whatever it holds."""
    return text if isinstance(text, Verbatim) else _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def embedded(folder: Path, kind: str, name: str) -> str:
    """An image in `plots` or `pictures` of a report's folder, as a lossless data URL."""
    file = io.BytesIO()
    with Image.open(folder / kind / f"{name}.png") as image:
        image.save(file, "WEBP", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def _environment(**options: Any) -> Environment:  # noqa: ANN401 - of jinja2
    made = Environment(
        loader=PackageLoader("s3diff_benchmarks.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    made.filters |= {
        "as_json": partial(json.dumps, indent=2, ensure_ascii=False),
        "fenced": fenced,
        "figure": figure_in,
        "rounded": rounded,
        "shown": shown_table,
    }
    return made


_MARKDOWN = _environment(autoescape=False, finalize=_escaped)
_HTML = _environment(autoescape=True)
_SCRIPT = (Path(__file__).parent / "templates" / "page.js").read_text(encoding="utf-8")
_HTML.globals |= {
    "script": _SCRIPT,
    "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}",
}
