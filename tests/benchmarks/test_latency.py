"""Latency: what is timed, by whose clock, and what the tables make of it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from tests.runtime.fake_bundle import dark_noise, write_fake_bundle

from s3diff_benchmarks.methods import Input, Upscaled
from s3diff_benchmarks.pictures.pixels import square_of
from s3diff_benchmarks.report.model import Table
from s3diff_benchmarks.report.plots import ceiling, series_of
from s3diff_benchmarks.speed.ceilings import Ceilings, measure_ceilings
from s3diff_benchmarks.speed.cold_start import Task, measure_cold_start
from s3diff_benchmarks.speed.flops import Work
from s3diff_benchmarks.speed.latency import CALL, END_TO_END, Case, Timings, measure
from s3diff_benchmarks.speed.latency_run import (
    agreement_table,
    latency_table,
    plots,
    roofline,
    stage_table,
    table3_seconds,
)
from s3diff_export import cli
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.errors import JobError
from s3diff_training.weights import ModelSource

QUICK: dict[str, Any] = {"seconds": 0.2, "warm_up": 1}
PICTURE = dark_noise(40, 40, brightest=250)


class Enlarger:
    """Enlarges without interpolation, in a known time."""

    def __init__(self, name: str, unet: float = 0.01, other: float = 0.0) -> None:
        self.name, self._unet, self._other = name, unet, other
        self.shapes: list[tuple[int, ...]] = []

    def __call__(
        self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
    ) -> list[Upscaled]:
        self.shapes.append((len(inputs), *inputs[0].pixels.shape))
        sleep(self._unet + self._other)
        seconds = {"unet": self._unet / len(inputs)}
        return [Upscaled(each.pixels.repeat(4, 0).repeat(4, 1), seconds) for each in inputs]


class Meter:
    """A GPU that takes 2 J whenever it is asked, beyond what it took before."""

    def __init__(self) -> None:
        self._joules = 0.0

    def joules(self) -> float:
        self._joules += 2.0
        return self._joules


def column(table: Table, name: str) -> list[Any]:
    place = [column.name for column in table.columns].index(name)
    return [row[place] for row in table.rows]


def rows(table: Table, **key: object) -> list[dict[str, Any]]:
    names = [column.name for column in table.columns]
    found = [dict(zip(names, row, strict=True)) for row in table.rows]
    return [row for row in found if all(row[name] == value for name, value in key.items())]


def test_every_method_is_timed_in_every_case(tmp_path: Path) -> None:
    slow, fast = Enlarger("slow", 0.1), Enlarger("fast", 0.01)
    cases = [Case(16, 1), Case(24, 3)]
    timings = measure([slow, fast], cases, PICTURE, tmp_path, **QUICK)
    assert [(each.method, each.case) for each in timings] == [
        (name, case) for case in cases for name in ("slow", "fast")
    ]
    assert set(slow.shapes) == {(1, 16, 16, 3), (3, 24, 24, 3)}
    table = latency_table(timings)
    for case in cases:
        first, second = rows(table, size=case.side, batch=case.batch, part=CALL)
        assert first["median"] >= 0.1
        assert first["median"] > second["median"] >= 0.01
        assert second["time, first method = 1"] == second["median"] / first["median"]
        assert first["rate"] == pytest.approx(case.batch / first["median"])
    whole = rows(table, method="slow", size=24, part=END_TO_END)[0]
    assert whole["median"] > rows(table, method="slow", size=24, part=CALL)[0]["median"]


def test_warm_up_does_not_count(tmp_path: Path) -> None:
    method = Enlarger("cold")
    (timing,) = measure([method], [Case(8, 1)], PICTURE, tmp_path, seconds=0.01, warm_up=4)
    assert len(method.shapes) == 4 + 3
    assert {len(samples) for samples in timing.stages.values()} == {3}
    assert list(timing.stages) == ["decode", "unet", "host", "encode"]


def test_time_that_no_stage_has_is_the_hosts(tmp_path: Path) -> None:
    (timing,) = measure([Enlarger("host", 0.01, 0.02)], [Case(8, 1)], PICTURE, tmp_path, **QUICK)
    table = stage_table([timing], {}, None)
    by_stage = dict(zip(column(table, "stage"), column(table, "time"), strict=True))
    assert by_stage["unet"] == 0.01
    assert by_stage["host"] >= 0.02
    assert by_stage["call"] == pytest.approx(by_stage["unet"] + by_stage["host"])


def test_images_of_all_methods_are_compared(tmp_path: Path) -> None:
    class Brighter(Enlarger):
        def __call__(
            self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
        ) -> list[Upscaled]:
            results = super().__call__(inputs)
            return [replace(result, pixels=result.pixels + np.uint8(3)) for result in results]

    timings = measure([Enlarger("exact"), Brighter("brighter")], [Case(8, 1)], PICTURE, tmp_path, **QUICK)
    table = agreement_table(timings, ["exact"])
    assert [row[:2] for row in table.rows] == [("brighter", "exact")]
    assert column(table, "largest difference") == [3]
    assert column(table, "PSNR") == pytest.approx([20 * np.log10(255 / 3)])


def test_energy_is_counted_by_image(tmp_path: Path) -> None:
    (timing,) = measure([Enlarger("gpu")], [Case(8, 4)], PICTURE, tmp_path, **QUICK, counter=Meter().joules)
    assert column(latency_table([timing]), "energy") == [0.5, None]


def test_an_image_of_one_colour_is_an_error(tmp_path: Path) -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(JobError, match=r"broken gave an image of one colour \(0\)"):
        measure([Enlarger("broken")], [Case(8, 1)], black, tmp_path, **QUICK)


def test_pictures_are_cut_from_the_middle_or_mirrored() -> None:
    np.testing.assert_array_equal(square_of(PICTURE, 20), PICTURE[10:30, 10:30])
    large = square_of(PICTURE, 100)
    assert large.shape == (100, 100, 3)
    np.testing.assert_array_equal(large[40:80, :40], PICTURE[::-1])


# --- what the machine could do --------------------------------------------------------------------

TIMED = Timings(
    "ours", Case(128, 1), {"decode": [0.5] * 3, "unet": [2.0] * 3, "host": [1.0] * 3, "encode": [0.5] * 3}
)
WORKS = {("ours", Case(128, 1)): {"unet": Work(flops=4 * 10**12, traffic=10**11, outputs={})}}
CEILINGS = Ceilings(flops=8e12, bandwidth=1e11, precision="fp32", device="cpu")


def test_achieved_is_work_by_time_and_below_the_roof() -> None:
    table = stage_table([TIMED], WORKS, CEILINGS)
    (unet,) = rows(table, stage="unet")
    assert (unet["time"], unet["share"], unet["work"], unet["achieved"]) == (2.0, 50.0, 4.0, 2.0)
    assert unet["of the matrix product"] == 25.0
    assert CEILINGS.at(40) == 4e12, "40 FLOP a byte at 100 GB/s"
    assert unet["of the roof"] == 50.0
    (call,) = rows(table, stage="call")
    assert call["achieved"] == pytest.approx(4 / 3)
    assert rows(table, stage="decode")[0]["work"] is None
    assert rows(stage_table([TIMED], WORKS, None), stage="unet")[0]["of the roof"] is None


def test_roofline_shows_stages_below_the_ceiling() -> None:
    tables = {table.name: table for table in (stage_table([TIMED], WORKS, CEILINGS), CEILINGS.table())}
    points = series_of(roofline([TIMED], "ours", CEILINGS), tables)
    assert [(series.name, series.x, series.y) for series in points] == [("unet", (40.0,), (2.0,))]
    roof = ceiling(tables, points)
    assert dict(zip(roof.x, roof.y, strict=True)) == {20.0: 2.0, 80.0: 8.0, 160.0: 8.0}


def test_ceilings_are_measured() -> None:
    found = measure_ceilings("cpu", "fp16", threads=1, seconds=0.5)
    assert (found.precision, found.device) == ("fp32", "cpu")
    assert 1e9 < found.flops < 1e13
    assert 1e8 < found.bandwidth < 1e12


def test_only_one_image_of_128_stands_in_the_papers_table() -> None:
    other = Timings("other", Case(64, 1), TIMED.stages)
    assert table3_seconds([TIMED, other]) == {"ours": 3.0}


def test_plots_by_batch_need_several_batches() -> None:
    assert [plot.name for plot in plots([TIMED])] == ["methods", "stages"]
    more = [TIMED, Timings("ours", Case(128, 4), TIMED.stages)]
    by_batch = next(plot for plot in plots(more) if plot.name == "batches")
    (series,) = series_of(by_batch, {"latency": latency_table(more)})
    assert (series.x, series.y) == ((1, 4), (1 / 3, 4 / 3))


# --- new processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("bundle"), "dynamic")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photograph.png"
    Image.fromarray(PICTURE).save(path)
    return path


def test_a_new_process_is_timed(bundle: Path, photograph: Path) -> None:
    held = np.ones(2**29, np.uint8)  # this process holds 512 MiB, which the new one must not be charged for
    found = measure_cold_start(Task("fake", bundle, photograph, "cpu", CpuOptions(threads=1)), 1)
    assert held.any()
    assert found.second_image > 0
    assert found.ready == found.launch + found.imports + found.open + found.first_image < 60
    assert 20 < found.host_mib < 400
    assert found.device_mib is None


def test_weights_reach_a_new_process(photograph: Path) -> None:
    task = Task("PyTorch", ModelSource(demo=True), photograph, "cpu")
    assert pickle.loads(pickle.dumps(task)) == task


def test_a_process_that_fails_is_told(tmp_path: Path, photograph: Path) -> None:
    task = Task("fake", tmp_path / "none", photograph, "cpu")
    with pytest.raises(JobError, match=r"a new process with fake failed: .*none"):
        measure_cold_start(task, 1)


# --- the command ----------------------------------------------------------------------------------


def latency(*arguments: str) -> int:
    return cli.run(cli.cli, ["bench", "latency", *arguments])


def test_command_reports_bundles_side_by_side(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_fake_bundle(tmp_path / "other", "fused")
    folder = tmp_path / "out"
    options = ["--size", "8,16", "--batch", "1,2", "--seconds", "0.5", "--cold-starts", "1", "--threads", "1"]
    assert latency(str(bundle), "--vs", str(other), *options, "-o", str(folder), "--html") == 0
    report = json.loads((folder / "report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    assert list(tables) == ["latency", "stages", "agreement", "cold-start", "table3", "ceilings"]
    keys = {tuple(row[:4]) for row in tables["latency"]["rows"]}
    assert len(keys) == 2 * 2 * 2 * 2
    assert len(report["bundles"]) == 2
    assert any("PyTorch was not timed" in note for note in report["notes"])
    assert {path.name for path in (folder / "plots").iterdir()} >= {
        "methods.png",
        "stages.png",
        "roofline.png",
    }
    assert "Where the time goes" in (folder / "report.md").read_text()
    assert (folder / "report.html").is_file()
    assert "The paper's Table 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size", "big"], 2, "'--size': 'big' is not a valid integer"),
        (["--batch", "0"], 2, "batches is (0,), expected from 1 to 256"),
        (["--engine", "onnx,none"], 0, "was not measured on none: unknown engine 'none'"),
        (["--seconds", "0"], 2, "seconds is 0.0, expected more than 0"),
        (["--warm-up", "-1"], 2, "warm_up is -1, expected 0 or more"),
        (["--engine", "none"], 2, "unknown engine 'none'"),
        (["--device", "cuda"], 2, "device cuda was asked for, but ONNX Runtime"),
        (["--image", "none.png"], 2, "none.png does not exist"),
        (["--base", "somewhere"], 2, "--base and --checkpoint go together"),
    ],
)
def test_bad_requests(
    bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    options = ["--size", "8", "--seconds", "0.1", "--cold-starts", "0", "--threads", "1"]
    assert latency(str(bundle), *options, *arguments) == code
    captured = capsys.readouterr()
    assert message in " ".join((captured.out + captured.err).split())


def test_throughput_command(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    arguments = ["--size", "16", "--callers", "1,3", "--seconds", "2", "--threads", "1", "-o", str(folder)]
    assert cli.run(cli.cli, ["bench", "throughput", str(bundle), *arguments]) == 0
    report = json.loads((folder / "report.json").read_text())
    tables = {table["name"]: table for table in report["tables"]}
    assert [row[0] for row in tables["throughput"]["rows"]] == [
        "folder",
        "callers, at best",
        "arrivals, at the knee",
    ]
    assert tables["throughput"]["rows"][0][3] > 0
    assert [row[0] for row in tables["callers"]["rows"]] == [1, 3]
    best = max(row[1] for row in tables["callers"]["rows"])
    assert [row[0] for row in tables["arrivals"]["rows"]] == pytest.approx(
        [best * share for share in (0.5, 0.7, 0.8, 0.9, 1.0, 1.2)]
    )
    assert not list(tmp_path.glob("tmp*"))
