"""What a benchmark found: one model for JSON, Markdown, plots and the page that people open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s3diff_benchmarks.machine import Machine
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.records import Sha256, UtcTime

REVISION: Final = 1
"""Of the JSON; docs/bench-report.schema.json describes it."""

Cell = str | int | float | bool | None
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]


class Part(BaseModel):
    """Frozen; unknown fields are errors. NaN and infinity are written as null."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Column(Part):
    """A column of a table."""

    name: str
    unit: str = ""
    better: Literal["lower", "higher", ""] = ""
    """Which way is an improvement; empty where neither is."""
    digits: int = 3
    """Significant digits that people are shown; the JSON has all."""


def bounds_of(name: str) -> tuple[str, str]:
    """Names of the columns that hold the interval of the column `name`."""
    return f"{name} low", f"{name} high"


def seconds_columns(fields: Sequence[str]) -> tuple[Column, ...]:
    """The columns of fields of a `statistics.Summary` in seconds; its bounds are neither better nor worse."""
    return tuple(
        Column(name=field, unit="s", better="" if field in ("low", "high") else "lower") for field in fields
    )


class Table(Part):
    """Figures under headings. The first `key` columns tell the rows apart."""

    name: Slug
    title: str
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    key: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _is_a_rectangle(self) -> Self:
        lengths = {len(row) for row in self.rows} - {len(self.columns)}
        if lengths:
            raise ValueError(f"table {self.name} has {len(self.columns)} columns and rows of {lengths}")
        return self


class Series(Part):
    """One line, or one kind of bar or point, of a plot; `low` and `high` bound what is uncertain."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _is_even(self) -> Self:
        if {len(part) for part in (self.y, self.low, self.high) if part is not None} != {len(self.x)}:
            raise ValueError(f"series {self.name} has coordinates of different numbers")
        return self


class Plot(Part):
    """A picture of figures, drawn as `plots/<name>.png`."""

    name: Slug
    title: str
    kind: Literal["line", "bar", "scatter", "roofline"]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = False
    """Whether the y axis begins at zero, as it should for what is compared by ratio."""
    series: tuple[Series, ...] = Field(min_length=1)


class Picture(Part):
    """Two images to compare; names of the images that are handed over when the report is written.

    They become `pictures/<name>.png`. Where both are the same, one image is shown.
    """

    name: Slug
    title: str
    before: Slug
    after: Slug


class BundleFacts(Part):
    """Which bundle was measured."""

    name: str
    manifest_sha256: Sha256
    producer: str
    lora_mode: str
    precision: str
    bins: int
    engines: tuple[str, ...]

    @classmethod
    def of(cls, name: str, manifest: Manifest, manifest_sha256: str) -> Self:
        """The facts of a manifest, whose file has that hash."""
        return cls(
            name=name,
            manifest_sha256=manifest_sha256,
            producer=manifest.producer,
            lora_mode=manifest.lora_mode,
            precision=manifest.precision,
            bins=len(manifest.bins),
            engines=tuple(engines.name for engines in manifest.engines),
        )


class Report(Part):
    """All that a benchmark command found, and what it takes to read it."""

    format: Literal["s3diff-bench"] = "s3diff-bench"
    revision: Literal[1] = REVISION
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

    @model_validator(mode="after")
    def _has_different_names(self) -> Self:
        for problem in self._twice():
            raise ValueError(problem)
        return self

    def _twice(self) -> Iterator[str]:
        for kind, parts in (("tables", self.tables), ("plots", self.plots), ("pictures", self.pictures)):
            names = [part.name for part in parts]
            if len(set(names)) != len(names):
                yield f"two {kind} have the same name: {names}"
