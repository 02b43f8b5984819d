"""Bins: grids, files of centres, the nearest one, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3diff_export.bins import grid, parse_bins
from s3diff_runtime.bundle.manifest import nearest_bin
from s3diff_runtime.errors import RequestError

scores = st.floats(0, 1)


def test_a_grid_has_the_centres_of_equal_cells() -> None:
    bins = grid(2, 3)
    assert len(bins) == 6
    assert {bin.noise for bin in bins} == {0.25, 0.75}
    assert sorted({bin.blur for bin in bins}) == pytest.approx([1 / 6, 0.5, 5 / 6])
    assert len({bin.name for bin in bins}) == 6


@given(noise=scores, blur=scores, rows=st.integers(1, 12), columns=st.integers(1, 12))
def test_the_nearest_centre_of_a_grid_is_within_half_a_cell(
    noise: float, blur: float, rows: int, columns: int
) -> None:
    bin = nearest_bin(grid(rows, columns), noise, blur)
    assert bin is not None
    assert abs(bin.noise - noise) <= 0.5 / rows + 1e-9
    assert abs(bin.blur - blur) <= 0.5 / columns + 1e-9


def test_centres_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "centres.csv"
    path.write_text("noise,blur\n0.1,0.9\n0.5,0\n")
    assert [(bin.noise, bin.blur) for bin in parse_bins(str(path))] == [(0.1, 0.9), (0.5, 0.0)]
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as spreadsheets save it
    assert len(parse_bins(str(path))) == 2


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("noise,blur\n", "no lines"),
        ("noise,blur\n0.1,2\n0.2,x\n", "line 2.*line 3"),
        ("a,b\n1,1\n", "expected noise,blur"),
        ("noise,blur\n0.5,0.5\n0.5,0.501\n", "twice"),
        ("noise,blur\n0.1,\xe9\n", "cannot be read .*UTF-8"),
    ],
)
def test_a_bad_file_is_described(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "centres.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RequestError, match=named):
        parse_bins(str(path))


@pytest.mark.parametrize("text", ["", "3", "0x3", "3x", "-1x2", "100x1", "nowhere.csv"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="3x3"):
        parse_bins(text)
