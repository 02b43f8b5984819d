"""Reads what a plot shows from the tables of its report, and draws it as a PNG file, without a display."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from s3diff_benchmarks.report.model import (
    CEILINGS,
    Cell,
    Names,
    Plot,
    Row,
    Table,
    figure_in,
    interval_of,
    names_of,
)

_COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#64748b")
"""Apart also for most colour-blind readers, in this order."""
_MARKERS = "os^Dv<>"
"""One fewer than colours, so that 56 series differ."""
_SIZE = (6.0, 3.9)
"""Inches; with 11 point letters, readable when a phone shows it 350 pixels wide."""
_DPI = 200
_LEGEND_COLUMNS = 2
_FEW_DECADES = 500.0
"""The ratio of an axis's ends up to which ticks stand at 2 and 5 too."""
_LONG = 34
"""Letters of a name beyond which it is cut."""


@dataclass(frozen=True)
class Series:
    """One line, or one kind of bar or point; `low` and `high` bound what is uncertain."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


def series_of(plot: Plot, tables: Mapping[str, Table]) -> list[Series]:
    """The series of a plot of a report's tables, in the rows' order; rows without x or y are left out."""
    groups: dict[str, list[Row]] = {}
    for row in tables[plot.table].records:
        wanted = {name: cell if isinstance(cell, tuple) else (cell,) for name, cell in plot.where.items()}
        if all(row[name] in cells for name, cells in wanted.items()):
            groups.setdefault(_named(row, names_of(plot.by)), []).append(row)
    several = len(names_of(plot.y)) > 1
    found = []
    for name, rows in groups.items():
        for y in names_of(plot.y):
            title = ", ".join(part for part in (name, y if several or not name else "") if part)
            found.append(_series(title, rows, plot.x, y))
    return [series for series in found if series.x]


def ceiling(tables: Mapping[str, Table], points: Sequence[Series]) -> Series:
    """The roof above the points of a roofline (Williams et al. 2009): FLOP for each byte, and TFLOP/s."""
    measured = {row["what"]: figure_in(row["measured"]) for row in tables[CEILINGS].records}
    product, copied = (measured[name] or math.nan for name in ("matrix product", "copy"))
    ridge = 1000 * product / copied
    found = [float(x) for series in points for x in series.x] or [ridge]
    x = sorted({min(*found, ridge) / 2, ridge, max(*found, ridge) * 2})
    return Series("ceiling (measured)", tuple(x), tuple(min(product, each * copied / 1000) for each in x))


def label(text: str, names: Names, table: Table) -> str:
    """The text of an axis; where it is empty, the columns' names with their unit."""
    unit = next(column.unit for column in table.columns if column.name == names_of(names)[0])
    return text or ", ".join(names_of(names)) + (f" ({unit})" if unit else "")


def draw(plot: Plot, tables: Mapping[str, Table]) -> bytes:
    """The plot of a report's tables as a PNG of 1200 by 780 pixels."""
    drawn = series_of(plot, tables)
    figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(plot.title, 2 * _LONG), fontsize=12, x=0.02, horizontalalignment="left")
    axes = figure.add_subplot()
    _frame(axes, plot, tables[plot.table])
    if plot.kind == "roofline":
        roof = ceiling(tables, drawn)
        axes.plot(roof.x, roof.y, color="#0f172a", linewidth=1.6, label=_plain(roof.name))
    if plot.kind == "bar":
        _bars(axes, drawn)
    else:
        _curves(axes, drawn, joined=plot.kind == "line", log_x=plot.log_x)
    if plot.from_zero:
        axes.set_ylim(bottom=0)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _name_decades(axis)
    if len(drawn) > 1 or plot.kind == "roofline":
        figure.legend(fontsize=10, frameon=False, loc="outside lower center", ncols=_LEGEND_COLUMNS)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _frame(axes: Axes, plot: Plot, table: Table) -> None:
    axes.set_xlabel(_plain(label(plot.x_label, plot.x, table)), fontsize=11)
    axes.set_ylabel(_plain(label(plot.y_label, plot.y, table)), fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(True, which="major", color="#e2e8f0", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if plot.log_x or plot.kind == "roofline":
        axes.set_xscale("log")
    if plot.log_y or plot.kind == "roofline":
        axes.set_yscale("log")


def _curves(axes: Axes, drawn: Sequence[Series], joined: bool, log_x: bool) -> None:
    """Lines whose bounds are bands, or points whose bounds are bars; at numbers, or at names in a row."""
    numbers = sorted({x for series in drawn for x in series.x if not isinstance(x, str)})
    names = _names(drawn) if any(isinstance(x, str) for series in drawn for x in series.x) else []
    for number, series in enumerate(drawn):
        x = [names.index(str(each)) if names else float(each) for each in series.x]
        style = _style(number)
        if not joined:
            style |= {"yerr": _errors(series), "linestyle": "none", "markersize": 6, "capsize": 3}
            axes.errorbar(x, series.y, label=_plain(series.name), **style)
            continue
        axes.plot(x, series.y, label=_plain(series.name), markersize=5, linewidth=1.8, **style)
        if series.low is not None and series.high is not None:
            axes.fill_between(x, series.low, series.high, color=style["color"], alpha=0.18, linewidth=0)
    if names:
        crowded: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, names)) > 2 * _LONG else {}
        axes.set_xticks(range(len(names)), [_plain(name) for name in names], **crowded)
    elif log_x and len(numbers) <= 8 and all(map(math.isfinite, numbers)):
        axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
        axes.minorticks_off()


def _bars(axes: Axes, drawn: Sequence[Series]) -> None:
    """Groups side by side; lying down where the names would not fit under upright bars."""
    names = _names(drawn)
    lying = sum(map(len, names)) > 2 * _LONG
    thickness = 0.8 / max(len(drawn), 1)
    draw_bars, errors_along = (axes.barh, "xerr") if lying else (axes.bar, "yerr")
    for number, series in enumerate(drawn):
        offset = (number - (len(drawn) - 1) / 2) * thickness
        at = [names.index(str(x)) + offset for x in series.x]
        style: dict[str, Any] = {"color": _style(number)["color"], "label": _plain(series.name)}
        style |= {errors_along: _errors(series), "error_kw": {"capsize": 3, "linewidth": 1.2}}
        draw_bars(at, series.y, thickness, **style)
    if lying:
        x_label, y_label = axes.get_xlabel(), axes.get_ylabel()
        axes.set(xlabel=y_label, ylabel=x_label, xscale=axes.get_yscale(), yscale="linear")
        axes.invert_yaxis()
    across = axes.yaxis if lying else axes.xaxis
    across.set_ticks(range(len(names)), [_plain(name) for name in names])
    across.grid(False)


def _style(number: int) -> dict[str, Any]:
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def _errors(series: Series) -> NDArray[np.float64] | None:
    """How far the bounds lie below and above."""
    if series.low is None or series.high is None:
        return None
    return np.maximum([np.subtract(series.y, series.low), np.subtract(series.high, series.y)], 0)


def _names(drawn: Sequence[Series]) -> list[str]:
    """All that stands on the x axis, as text, in the order of its first appearance."""
    return list(dict.fromkeys(str(x) for series in drawn for x in series.x))


def _name_decades(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis, at 2 and 5 too where it spans few decades."""
    low, high = axis.get_view_interval()
    if isinstance(axis.get_major_locator(), FixedLocator):  # the numbers themselves were named
        return
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > _FEW_DECADES else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _plain(text: str, most: int = _LONG) -> str:
    """Text that matplotlib shows as it is: a dollar would begin mathematics, a leading underscore hides."""
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"{' ' * short.startswith('_')}{short}".replace("$", r"\$")


def _named(row: Row, columns: Sequence[str]) -> str:
    """A series by its cells; numbers with their column's name, nothing for nothing."""
    known = {name: cell for name in columns if (cell := row[name]) is not None}
    return ", ".join(
        cell if isinstance(cell, str) else f"{name} {_short(cell)}" for name, cell in known.items()
    )


def _x(row: Row, names: Names) -> float | str | None:
    cells = [row[name] for name in names_of(names)]
    if None in cells:
        return None
    (first, *more) = cells
    return first if not more and first is not None else " × ".join(map(_short, cells))


def _series(name: str, rows: Sequence[Row], x: Names, y: str) -> Series:
    points = [
        (at, figure, row)
        for row in rows
        if (at := _x(row, x)) is not None and (figure := figure_in(row[y])) is not None
    ]
    bounds = [
        tuple(bound for _, _, row in points if (bound := figure_in(row.get(column))) is not None)
        for column in interval_of(y)
    ]
    low, high = bounds if all(len(known) == len(points) for known in bounds) else (None, None)
    return Series(name, tuple(at for at, _, _ in points), tuple(figure for _, figure, _ in points), low, high)


def _short(cell: Cell) -> str:
    return f"{cell:g}" if isinstance(cell, float) else str(cell)
