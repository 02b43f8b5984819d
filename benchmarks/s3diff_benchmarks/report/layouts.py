"""Tables and plots as `data/layouts.toml` lays them out, which holds their titles, columns and notes."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from s3diff_benchmarks.report.model import Cell, Column, Plot, Table

_LAYOUTS = tomllib.loads((files("s3diff_benchmarks") / "data" / "layouts.toml").read_text(encoding="utf-8"))
_COLUMN = re.compile(r"(?P<name>.+?)( \[(?P<unit>.+)\])?( (?P<better>[↑↓]))?( \.(?P<digits>\d))?")
_BETTER: Any = {"↑": "higher", "↓": "lower", None: ""}


def columns_of(text: str) -> tuple[Column, ...]:
    """The columns of a heading such as `method | rate [images/s] ↑ | PSNR [dB] ↑ .4`."""
    found = [_COLUMN.fullmatch(part.strip()) for part in text.split("|")]
    return tuple(
        Column(
            name=each["name"],
            unit=each["unit"] or "",
            better=_BETTER[each["better"]],
            digits=int(each["digits"] or 3),
        )
        for each in found
        if each
    )


def table(
    layout: str,
    rows: Iterable[Sequence[Cell]],
    more: Sequence[Column] = (),
    prefix: str = "",
    **texts: object,
) -> Table:
    """A table of the layouts.

    Args:
        layout: its name in the file, and in the report where the layout names no other.
        rows: with a cell for every column.
        more: columns behind those of the layout.
        prefix: of the name in the report.
        texts: what stands for `{…}` in the title and the note.
    """
    given = _LAYOUTS["table"][layout]
    return Table(
        name=prefix + given.get("name", layout),
        title=given["title"].format_map(texts),
        columns=(*columns_of(given["columns"]), *more),
        rows=tuple(map(tuple, rows)),
        note=given.get("note", "").strip().format_map(texts),
        key=given.get("key", 1),
    )


def plot(layout: str, fields: dict[str, Any] | None = None, prefix: str = "", **texts: object) -> Plot:
    """A plot of the layouts, with more fields of a `Plot` or others in their place; see `table`."""
    given = {"name": layout, "table": layout, **_LAYOUTS["plot"][layout], **(fields or {})}
    named = {name: prefix + given[name] for name in ("name", "table")}
    return Plot(**{**given, **named, "title": given["title"].format_map(texts)})
