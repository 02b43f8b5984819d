"""`bench plan`, and the scheduler of `upscale --ray` on paper: each picture comes to exactly one end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s3diff_benchmarks.clusters.plan import PlanRequest, run_plan
from s3diff_benchmarks.clusters.simulation import Simulated, simulate
from s3diff_export.cli import cli, run
from s3diff_runtime.batch.shares import MOST_LOSSES, Shares
from s3diff_runtime.errors import JobError


@settings(max_examples=150)
@given(
    pictures=st.integers(1, 400),
    workers=st.integers(1, 7),
    seconds=st.floats(0.05, 5),
    between_deaths=st.floats(5, 500) | st.just(math.inf),
    restart=st.floats(0, 30),
    every=st.none() | st.integers(3, 100),
    batch=st.integers(1, 8),
    seed=st.integers(0, 2**16),
)
def test_every_picture_comes_to_exactly_one_end(
    pictures: int,
    workers: int,
    seconds: float,
    between_deaths: float,
    restart: float,
    every: int | None,
    batch: int,
    seed: int,
) -> None:
    run = Simulated(
        pictures, workers, seconds, 0.3, between_deaths, restart, 1 / every if every else 0.0, batch
    )
    course = simulate(run, seed)
    assert set(course.results) == {1}
    poisoned = pictures // every if every else 0
    assert course.failed >= poisoned
    if between_deaths == math.inf:
        # Each of the poisoned costs itself and so many workers at most, and no other picture.
        assert course.failed == poisoned
        assert course.deaths <= MOST_LOSSES * poisoned
    assert course.seconds >= course.busy / workers * 0.999


def test_work_is_done_in_time_and_deaths_cost_little() -> None:
    calm = simulate(Simulated(20_000, 16, 0.5, restart=60), seed=1)
    assert calm.seconds == pytest.approx(60 + 20_000 * 0.5 / 16, rel=0.02)
    rough = simulate(Simulated(20_000, 16, 0.5, restart=60, between_deaths=600, poisoned=1e-4), seed=1)
    assert rough.deaths > 10
    assert rough.failed == 2
    assert rough.repeated < 0.01 * 20_000
    assert rough.seconds < 1.3 * calm.seconds


def test_shares_grow_with_speed_and_shrink_towards_the_end() -> None:
    shares = Shares(range(1000), least=4, workers=2, total=1000)
    assert shares.take([]) == (0, 1, 2, 3)
    shares.done((0, 1, 2, 3), seconds=0.2)
    lengths = []
    while not shares.ended:
        share = shares.take([])
        lengths.append(len(share))
        shares.done(share, 0.05 * len(share))
    assert max(lengths) == 64
    assert lengths[0] == 64
    assert lengths[-2] == 4
    assert sum(lengths) == 996


def test_a_suspect_is_worked_on_alone() -> None:
    shares = Shares(range(6), least=2, workers=1)
    first = shares.take([])
    second = shares.take([first])
    assert shares.take([first, second]) == (), "two are enough"
    assert shares.lost(first) == []
    shares.unbegun(second)
    suspect = shares.take([])
    assert suspect == (0,)
    assert shares.take([suspect]) == ()
    for _ in range(MOST_LOSSES - 2):
        assert shares.lost(suspect) == []
        assert shares.take([]) == (1,)
        shares.done((1,), 1.0)
        suspect = shares.take([])
    assert shares.lost(suspect) == [0]
    assert shares.take([]) == second


def test_plan_says_where_each_figure_is_from() -> None:
    asked = PlanRequest(pictures=5000, nodes=2, gpus=2, seconds=0.25, poisoned=1e-3)
    rows = {str(row[0]): row for row in run_plan(asked).tables[0].rows}
    assert rows["time of a picture on a GPU"][1:] == (0.25, "s", "given")
    assert rows["an hour of a node"][3] == "assumed"
    assert str(rows["an input"][3]).startswith("measured: ")
    assert rows["time without losses"][1] == pytest.approx(5000 * 0.25 / 4 / 3600)
    assert rows["cost of requests"][1] == pytest.approx(5.01 * 0.005 + 5 * 0.0004)
    hours = rows["time"][1]
    assert isinstance(hours, float)
    assert rows["cost of nodes"][1] == pytest.approx(2 * 20 * hours)
    usual = {str(row[0]): row for row in run_plan(PlanRequest(pictures=5000)).tables[0].rows}
    assert str(usual["time of a picture on a GPU"][3]).startswith("published: ")


def test_plan_tells_what_holds_the_gpus_up() -> None:
    notes = run_plan(PlanRequest(pictures=100_000, nodes=500, seconds=0.1, gigabits=0.1)).notes
    assert any("network holds its GPUs up" in note for note in notes)
    assert any("40000 writes a second are more than the 3500" in note for note in notes)


def test_scheduler_that_loses_pictures_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(shares: Shares, share: Sequence[int]) -> list[int]:
        shares._out -= 1
        return []

    monkeypatch.setattr(Shares, "lost", forgetful)
    with pytest.raises(JobError, match=r"the scheduler lost or repeated \d+ pictures"):
        run_plan(PlanRequest(pictures=5000, poisoned=1e-3))


def test_command_reports_without_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["bench", "plan", "--pictures", "2000", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["title"]) == ("plan", "Plan of 2,000 pictures on 8 nodes")
