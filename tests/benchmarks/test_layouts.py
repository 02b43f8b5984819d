"""The layouts of tables and plots: their notation, and that all that stand in the file can be made."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import Any

import pytest

from s3diff_benchmarks.report.layouts import columns_of, plot, table
from s3diff_benchmarks.report.model import Column

LAYOUTS = tomllib.loads((files("s3diff_benchmarks") / "data" / "layouts.toml").read_text(encoding="utf-8"))
TEXTS: dict[str, Any] = {
    **dict.fromkeys(("case", "side", "precision", "device", "images", "subject", "grid", "dataset"), "some"),
    **dict.fromkeys(("crops", "trials", "times", "differences", "width", "height"), "some"),
}


def test_headings_tell_unit_direction_and_digits() -> None:
    assert columns_of(
        "method | rate [images/s] ↑ | PSNR of the worst [dB] ↑ .4 |\ntime, first method = 1"
    ) == (
        Column(name="method"),
        Column(name="rate", unit="images/s", better="higher"),
        Column(name="PSNR of the worst", unit="dB", better="higher", digits=4),
        Column(name="time, first method = 1"),
    )
    assert columns_of("given up ↓ | intensity [FLOP/byte] | limit .4") == (
        Column(name="given up", better="lower"),
        Column(name="intensity", unit="FLOP/byte"),
        Column(name="limit", digits=4),
    )


@pytest.mark.parametrize("name", LAYOUTS["table"])
def test_every_table_can_be_made(name: str) -> None:
    made = table(name, [], prefix="own-", **TEXTS)
    assert made.name == "own-" + LAYOUTS["table"][name].get("name", name)
    assert not [column.name for column in made.columns if set(column.name) & set("[]|↑↓{}")]
    assert len({column.name for column in made.columns}) == len(made.columns)
    assert 0 < made.key <= len(made.columns)
    assert not set(made.title + made.note) & set("{}\n")


@pytest.mark.parametrize("name", LAYOUTS["plot"])
def test_every_plot_draws_columns_of_its_table(name: str) -> None:
    made = plot(name, {"y_label": "other"}, **TEXTS)
    assert made.y_label == "other"
    names = {column.name for column in table(made.table, [], **TEXTS).columns}
    of_scores = {"PSNR-Y", "LPIPS", "fine detail"}  # columns that depend on what is measured
    assert set(made.columns) - of_scores <= names
