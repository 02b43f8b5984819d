"""Published figures as the paper prints them, and what may be set in ratio with them."""

from __future__ import annotations

import pytest

from s3diff_benchmarks.published import dataset_named, quality_table, table3
from s3diff_runtime.errors import RequestError

SCORES = ("PSNR-Y", "SSIM-Y", "LPIPS", "DISTS", "FID", "NIQE", "MUSIQ", "MANIQA", "CLIPIQA")


@pytest.mark.parametrize(
    ("dataset", "name", "figures"),
    [
        ("DIV2K-Val", "S3Diff-1", (23.40, 0.5953, 0.2571, 0.1730, 19.35, 4.7391, 68.21, 0.4538, 0.7007)),
        ("RealSR", "OSEDiff-1", (24.43, 0.7153, 0.3173, 0.2363, 126.13, 6.3821, 67.53, 0.4878, 0.6733)),
        ("DRealSR", "BSRGAN", (28.70, 0.8028, 0.2858, 0.2144, 155.63, 6.5296, 57.17, 0.3435, 0.5094)),
        ("RealSet65", "SinSR-1", (None, None, None, None, None, 5.9221, 62.85, 0.4341, 0.7172)),
    ],
)
def test_quality_rows_are_those_of_the_paper(
    dataset: str, name: str, figures: tuple[float | None, ...]
) -> None:
    (row,) = (row for row in quality_table(dataset).records if row["method"] == name)
    assert tuple(row[score] for score in SCORES) == figures
    assert str(row["source"]).startswith("the paper, Table")


@pytest.mark.parametrize(
    ("dataset", "count"), [("DIV2K-Val", 11), ("RealSR", 11), ("DRealSR", 11), ("RealSet65", 9)]
)
def test_every_row_is_there_and_plausible(dataset: str, count: int) -> None:
    table = quality_table(dataset)
    assert [column.name for column in table.columns] == ["method", *SCORES, "source"]
    assert len({row["method"] for row in table.records}) == len(table.rows) == count
    ranges = {"NIQE": (3, 9), "MUSIQ": (50, 70), "MANIQA": (0.3, 0.6), "CLIPIQA": (0.4, 0.8)}
    for row in table.records:
        for score, (low, high) in ranges.items():
            assert low < float(str(row[score])) < high


def test_other_data_sets_are_refused_by_name() -> None:
    with pytest.raises(RequestError, match="'Set5'; it has them for RealSR, DRealSR, DIV2K-Val, RealSet65"):
        dataset_named("Set5")
    assert dataset_named("realsr") == "RealSR"


def test_speed_rows_hold_the_strong_targets_too() -> None:
    table = table3(None, "Test CPU", None, {})
    found = {(row["method"], row["source"]): float(str(row["time"])) for row in table.records}
    assert found["S3Diff", "the paper, Table 3"] == 0.62
    assert found["OSEDiff", "the paper, Table 3"] == 0.60
    assert found["OSEDiff, fp16 and merged LoRA", "OSEDiff's repository"] == 0.105
    assert min(found.values()) == 0.036
    assert {row["machine"] for row in table.records} == {"NVIDIA A100"}


def test_ratios_stand_only_beside_what_this_run_measured() -> None:
    table = table3(0.5, "Test CPU, 2 cores", 4.31, {"PyTorch as released": 2.0})
    columns = [column.name for column in table.columns]
    rows = [dict(zip(columns, row, strict=True)) for row in table.rows]
    ratios = {row["method"]: row["time, this bundle = 1"] for row in rows if row["source"] == "this run"}
    assert ratios == {"S3Diff, this bundle": 1.0, "PyTorch as released": 4.0}
    assert all(row["time, this bundle = 1"] is None for row in rows if row["source"] != "this run")
    assert {row["machine"] for row in rows if row["source"] == "this run"} == {"Test CPU, 2 cores"}
    assert {row["trainable"] for row in rows if row["source"] == "this run"} == {4.31}


def test_without_a_measurement_table_3_is_only_published() -> None:
    rows = table3(None, "Test CPU", None, {}).records
    assert len(rows) == 12
    assert "this run" not in {row["source"] for row in rows}


def test_rows_of_table_3_are_told_apart_by_their_key() -> None:
    table = table3(0.5, "Test CPU", None, {"PyTorch as released": 2.0})
    keys = [row[: table.key] for row in table.rows]
    assert len(set(keys)) == len(keys)
