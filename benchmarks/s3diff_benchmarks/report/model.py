"""What a benchmark found: one model for JSON, Markdown, plots and the page that people open."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from s3diff_benchmarks.machine import Machine, Record
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import MANIFEST_NAME, Manifest
from s3diff_runtime.bundle.records import Sha256, UtcTime

REVISION: Final = 2
"""Of the JSON; docs/bench-report.schema.json describes it. In revision 1 plots held figures of their own."""
CEILINGS: Final = "ceilings"
"""The table that a roofline needs besides its own."""

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
"""The cells of a row by their columns."""
_ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


def figure_in(cell: Cell) -> float | None:
    """The number in a cell; None for texts, truth values, nothing, and what is not finite."""
    if isinstance(cell, str | bool) or cell is None or not math.isfinite(cell):
        return None
    return float(cell)


class Column(Record):
    """A column of a table."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    """Which way is an improvement; empty where neither is."""
    digits: int = 3
    """Significant digits that people are shown; the JSON has all."""

    @property
    def label(self) -> str:
        """The name, with the arrow of what is better."""
        return self.name + _ARROWS[self.better]

    @property
    def heading(self) -> str:
        """Name, unit and arrow in one."""
        return f"{self.name} ({self.unit}){_ARROWS[self.better]}" if self.unit else self.label


def bounds_of(name: str) -> tuple[str, str]:
    """Names of the columns that people see as the interval in the cells of the column `name`."""
    return f"{name} low", f"{name} high"


def interval_of(name: str) -> tuple[str, str]:
    """Names of the columns that hold the interval of a figure; those of a median are columns of their own."""
    return ("low", "high") if name == "median" else bounds_of(name)


class Table(Record):
    """Figures under headings. The first `key` columns tell the rows apart."""

    name: Slug
    title: str
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    key: int = Field(default=1, ge=0)

    @property
    def records(self) -> list[Row]:
        """The rows, each with its cells by the names of their columns."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    @model_validator(mode="after")
    def _is_a_rectangle(self) -> Self:
        lengths = {len(row) for row in self.rows} - {len(self.columns)}
        if lengths:
            raise ValueError(f"table {self.name} has {len(self.columns)} columns and rows of {lengths}")
        return self


Names = str | tuple[str, ...]
"""Of one column of a table or of several."""


def names_of(names: Names) -> tuple[str, ...]:
    """One name, several, or none for an empty text."""
    return tuple(name for name in ((names,) if isinstance(names, str) else names) if name)


class Plot(Record):
    """What is drawn of a table of the same report, as `plots/<name>.png`; `plots.series_of` reads it there.

    The interval columns of what is drawn bound it (see `interval_of`). A roofline's ceiling comes from the
    table `ceilings`, whose rows `matrix product` and `copy` have TFLOP/s and GB/s in the column `measured`.
    """

    name: Slug
    title: str
    kind: Literal["line", "bar", "scatter", "roofline"]
    table: Slug
    x: Names
    """The cells of several columns are joined."""
    y: Names
    """Several columns are as many series."""
    by: Names = ""
    """Columns whose cells tell series apart."""
    where: dict[str, Cell | tuple[Cell, ...]] = Field(default={})
    """By column, the cell, or any of the cells, that a row must have to be drawn."""
    x_label: str = ""
    """The columns' names and unit, where it is empty; so is the next."""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False
    """Whether the y axis begins at zero, as it should for what is compared by ratio."""


class Picture(Record):
    """Two images to compare; names of the images that are handed over when the report is written.

    They become `pictures/<name>.png`. Where both are the same, one image is shown.
    """

    name: Slug
    title: str
    before: Slug
    after: Slug


class BundleFacts(Record):
    """Which bundle was measured."""

    name: str
    manifest_sha256: Sha256
    producer: str
    lora_mode: str
    precision: str
    bins: int
    engines: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The facts of a bundle. Raises `BundleError` for a folder that is none."""
        manifest = Manifest.read(folder)
        return cls(
            name=folder.resolve().name,
            manifest_sha256=sha256(folder / MANIFEST_NAME),
            producer=manifest.producer,
            lora_mode=manifest.lora_mode,
            precision=manifest.precision,
            bins=len(manifest.bins),
            engines=tuple(engines.name for engines in manifest.engines),
        )


class Report(Record):
    """All that a benchmark command found, and what it takes to read it."""

    format: Literal["s3diff-bench"] = "s3diff-bench"
    revision: Literal[2] = REVISION
    kind: Slug
    title: str
    created: UtcTime
    command: str
    """As it was typed."""
    options: dict[str, Any]
    bundles: tuple[BundleFacts, ...]
    machine: Machine
    seconds: float = Field(ge=0)
    """That the command took."""
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    """What was not measured and why, and what to know when reading the rest."""

    @model_validator(mode="before")
    @classmethod
    def _read_revision_1(cls, given: object) -> object:
        """Its plots, which this version cannot draw, are left out; all else is the same."""
        if isinstance(given, dict) and given.get("revision") == 1:
            return {**given, "revision": REVISION, "plots": ()}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for problem in self._contradictions():
            raise ValueError(problem)
        return self

    def _contradictions(self) -> Iterator[str]:
        for kind, parts in (("tables", self.tables), ("plots", self.plots), ("pictures", self.pictures)):
            names = [part.name for part in parts]
            if len(set(names)) != len(names):
                yield f"two {kind} have the same name: {names}"
        columns = {table.name: {column.name for column in table.columns} for table in self.tables}
        for plot in self.plots:
            needed = (*names_of(plot.x), *names_of(plot.y), *names_of(plot.by), *plot.where)
            missing = [name for name in needed if name not in columns.get(plot.table, ())]
            if missing or plot.table not in columns:
                yield f"plot {plot.name}: table {plot.table} is missing, or its columns {missing}"
            if plot.kind == "roofline" and CEILINGS not in columns:
                yield f"plot {plot.name}: a roofline needs the table {CEILINGS}"
