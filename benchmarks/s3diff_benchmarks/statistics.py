"""Turns repeated measurements into figures that can be trusted: order statistics, intervals, fair rounds."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import Self

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.errors import RequestError
from s3diff_runtime.progress import Counted

CONFIDENCE = 0.95
"""Of all intervals."""


@dataclass(frozen=True)
class Summary:
    """What a set of timings says. All in the samples' unit, seconds as a rule.

    `low` to `high` is a distribution-free 95 % confidence interval of the median: the k-th smallest and k-th
    largest sample, with the largest k that a binomial of chance ½ allows (David and Nagaraja, Order
    Statistics, section 7.1). It takes 6 samples; of fewer it is their range, which covers less.
    """

    count: int
    least: float
    median: float
    p95: float
    p99: float
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Summarise samples. Raises `RequestError` when there are none, or one is not finite."""
        values = np.sort(_finite(samples))
        rank = max(_median_rank(len(values)), 1)
        percentiles = np.percentile(values, [50, 95, 99])
        figures = (values[0], *percentiles, values.mean(), values[rank - 1], values[-rank])
        return cls(len(values), *map(float, figures))

    def settled(self, tolerance: float = 0.02) -> bool:
        """Whether the median's whole interval lies within that fraction of the median."""
        enough = _median_rank(self.count) > 0
        return enough and max(self.high - self.median, self.median - self.low) <= tolerance * self.median


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % confidence interval by Student's t; of one value, that value thrice."""

    count: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The mean of values. Raises `RequestError` when there are none, or one is not finite."""
        from scipy.stats import sem, t

        found = _finite(values)
        count, mean = len(found), float(found.mean())
        half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * sem(found)) if count > 1 else 0.0
        return cls(count, mean, mean - half, mean + half)


def sample_interleaved(
    candidates: Mapping[str, Callable[[], float]],
    *,
    warm_up: int,
    least: int,
    tolerance: float,
    seconds: float,
    seed: int,
    progress: Counted = lambda done, what: None,
) -> dict[str, list[float]]:
    """Time candidates in rounds, each in an order drawn anew, so that a machine's drift hits all alike.

    Args:
        candidates: by name; a call runs one once and returns the seconds that it took by its own clock.
        warm_up: runs of each before anything counts; they count towards the time limit.
        least: rounds that are taken in any case, the time limit notwithstanding; at least 1.
        tolerance: rounds end when every median's interval lies within this fraction of it.
        seconds: rounds also end once this time is up, warm-up included.
        seed: of the orders.
        progress: told the seconds gone (never more than `seconds`) and what runs.

    Returns:
        Equally many samples of every candidate, in the order in which they were taken.

    Raises:
        RequestError: when there is no candidate or `least` is below 1.
    """
    if not candidates or least < 1:
        counts = f"{len(candidates)} candidates, {least} rounds"
        raise RequestError(f"nothing to measure: {counts}; at least 1 each")
    start = perf_counter()

    def run(name: str, phase: str) -> float:
        progress(min(perf_counter() - start, seconds), f"{phase}: {name}")
        return candidates[name]()

    for name in candidates:
        for _ in range(warm_up):
            run(name, "warm-up")
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order, shuffler = list(candidates), random.Random(seed)
    for finished in itertools.count():
        late = perf_counter() - start >= seconds
        settled = (Summary.of(taken).settled(tolerance) for taken in samples.values())
        if finished >= least and (late or all(settled)):
            break
        shuffler.shuffle(order)
        for name in order:
            samples[name].append(run(name, f"round {finished + 1}"))
    progress(seconds, "measured")
    return samples


@cache
def _median_rank(count: int) -> int:
    """The k of the interval's order statistics: P(Binomial(count, ½) < k) ≤ 2.5 %, and 0 where none fits."""
    from scipy.stats import binom

    return int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5))


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    if not found.size or not np.isfinite(found).all():
        raise RequestError(f"expected finite values, at least one; got {found.size}: {found[:8].tolist()}")
    return found
