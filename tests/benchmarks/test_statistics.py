"""Statistics against what is known: distributions, coverage of intervals, and a clock that is made up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from s3diff_benchmarks.statistics import Mean, Summary, sample_interleaved
from s3diff_runtime.errors import RequestError


class Bench:
    """A clock that only runs advance, and runs of known distribution."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = np.random.default_rng(seed)
        self.order: list[str] = []

    def candidate(
        self,
        name: str,
        median: float,
        spread: float = 0.05,
        drift: Callable[[float], float] = lambda now: 1.0,
    ) -> Callable[[], float]:
        """Log-normal, whose median is known and whose tail is that of real timings."""

        def run() -> float:
            seconds = median * float(np.exp(spread * self.random.standard_normal())) * drift(self.now)
            self.now += seconds
            self.order.append(name)
            return seconds

        return run

    def sampled(self, candidates: dict[str, Callable[[], float]], **options: Any) -> dict[str, list[float]]:  # noqa: ANN401
        with patch("s3diff_benchmarks.statistics.perf_counter", lambda: self.now):
            return sample_interleaved(candidates, **options)


def test_order_statistics_of_known_numbers() -> None:
    values = [float(value) for value in range(1, 101)]
    random.Random(3).shuffle(values)
    found = Summary.of(values)
    assert (found.count, found.least, found.median, found.mean) == (100, 1.0, 50.5, 50.5)
    assert found.p95 == pytest.approx(95.05)
    assert found.p99 == pytest.approx(99.01)
    # Tables of the sign test's interval, n = 100: the 40th and the 61st.
    assert (found.low, found.high) == (40.0, 61.0)


@pytest.mark.parametrize(
    ("count", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (25, 8), (40, 14)]
)
def test_ranks_are_those_of_published_tables(count: int, rank: int) -> None:
    found = Summary.of([float(value) for value in range(1, count + 1)])
    assert (found.low, found.high) == (rank, count + 1 - rank)


@pytest.mark.parametrize("count", [3, 5])
def test_few_samples_give_their_range_and_never_settle(count: int) -> None:
    found = Summary.of([1.0 + 1e-6 * number for number in range(count)])
    assert (found.low, found.high) == (found.least, 1.0 + 1e-6 * (count - 1))
    assert not found.settled(0.5)


@pytest.mark.parametrize("count", [10, 31, 100])
def test_median_interval_covers_the_median_as_often_as_it_says(count: int) -> None:
    """Of a skewed distribution; the discrete interval covers at least 95 %, and not much more."""
    draws = np.random.default_rng(1).exponential(size=(3000, count))
    hits = sum(found.low <= math.log(2) <= found.high for found in map(Summary.of, draws))
    exact = 1 - 2 * sum(math.comb(count, k) for k in range(_rank(count))) / 2**count
    assert exact >= 0.95
    assert hits / 3000 == pytest.approx(exact, abs=0.012)


def _rank(count: int) -> int:
    """The largest k with P(Binomial < k) ≤ 2.5 %, by counting."""
    k = 0
    while sum(math.comb(count, i) for i in range(k + 1)) / 2**count <= 0.025:
        k += 1
    return k


def test_mean_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(2).normal(5.0, 2.0, size=(3000, 8))
    hits = sum(found.low <= 5.0 <= found.high for found in map(Mean.of, draws))
    assert hits / 3000 == pytest.approx(0.95, abs=0.012)


def test_mean_of_a_textbook() -> None:
    found = Mean.of([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.count, found.mean) == (5, 3.0)
    assert found.high - found.mean == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert Mean.of([7.0]) == Mean(1, 7.0, 7.0, 7.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_is_no_sample_is_refused(values: list[float]) -> None:
    for kind in (Summary, Mean):
        with pytest.raises(RequestError, match="finite"):
            kind.of(values)


def test_medians_of_known_distributions_are_found() -> None:
    bench = Bench(seed=4)
    known = {"fast": 0.010, "middle": 0.013, "slow": 0.040}
    samples = bench.sampled(
        {name: bench.candidate(name, median) for name, median in known.items()},
        warm_up=2,
        least=10,
        tolerance=0.01,
        seconds=1e6,
        seed=1,
    )
    for name, median in known.items():
        found = Summary.of(samples[name])
        assert found.settled(0.01)
        assert found.median == pytest.approx(median, rel=0.015)
        assert len(samples[name]) > 10, "noisy candidates need more rounds than the least"


def test_steady_candidates_stop_at_the_least_rounds() -> None:
    bench = Bench(seed=5)
    samples = bench.sampled(
        {"a": bench.candidate("a", 1.0, 1e-4), "b": bench.candidate("b", 2.0, 1e-4)},
        warm_up=3,
        least=7,
        tolerance=0.02,
        seconds=1e6,
        seed=1,
    )
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 7, "b": 7}
    assert bench.order[:6] == ["a"] * 3 + ["b"] * 3, "warm-up comes first and is not among the samples"


def test_time_limit_ends_rounds_whole() -> None:
    bench = Bench(seed=6)
    told: list[tuple[float, str]] = []
    samples = bench.sampled(
        {"a": bench.candidate("a", 1.0, 0.5), "b": bench.candidate("b", 1.0, 0.5)},
        warm_up=1,
        least=2,
        tolerance=1e-9,
        seconds=50.0,
        seed=1,
        progress=lambda done, what: told.append((done, what)),
    )
    assert 50.0 <= bench.now < 60.0
    assert len(samples["a"]) == len(samples["b"]) > 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0] == (0.0, "warm-up: a")
    assert told[-1][0] == 50.0


def test_least_rounds_are_taken_even_without_time() -> None:
    bench = Bench(seed=7)
    samples = bench.sampled(
        {"a": bench.candidate("a", 9.0)},
        warm_up=0,
        least=3,
        tolerance=0.1,
        seconds=1.0,
        seed=1,
    )
    assert len(samples["a"]) == 3


def test_drift_hits_all_alike() -> None:
    """Two equal candidates on a machine that becomes twice as slow midway still measure equal."""

    def throttled(now: float) -> float:
        return 1.0 + min(now / 200.0, 1.0)

    bench = Bench(seed=8)
    samples = bench.sampled(
        {name: bench.candidate(name, 1.0, 0.02, throttled) for name in ("a", "b", "c")},
        warm_up=0,
        least=150,
        tolerance=1.0,
        seconds=0.0,
        seed=2,
    )
    medians = [Summary.of(taken).median for taken in samples.values()]
    assert max(medians) / min(medians) < 1.02
    assert Summary.of(samples["a"]).mean > 1.4, "the drift was there"


def test_rounds_hold_everyone_once_in_orders_of_the_seed() -> None:
    def orders(seed: int) -> list[tuple[str, ...]]:
        bench = Bench(seed=9)
        bench.sampled(
            {name: bench.candidate(name, 1.0) for name in "abc"},
            warm_up=0,
            least=60,
            tolerance=1.0,
            seconds=0.0,
            seed=seed,
        )
        return [tuple(bench.order[at : at + 3]) for at in range(0, 180, 3)]

    found = orders(1)
    assert all(sorted(order) == ["a", "b", "c"] for order in found)
    assert len(set(found)) == 6
    assert found == orders(1)
    assert found != orders(2)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(RequestError, match="0 candidates"):
        sample_interleaved({}, warm_up=0, least=1, tolerance=0.1, seconds=1.0, seed=0)
