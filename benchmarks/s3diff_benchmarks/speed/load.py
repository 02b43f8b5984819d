"""Load: callers that wait for their result, arrivals that do not, and batches of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from s3diff_benchmarks.statistics import Summary
from s3diff_runtime.batch.run import Batch
from s3diff_runtime.errors import JobError

if TYPE_CHECKING:
    from s3diff_runtime.serving.ray_batch import SharedBatch  # imports Ray

Call = Callable[[], object]


@dataclass(frozen=True)
class Load:
    """What a load came to. Times in seconds from asking, or arriving, to the result."""

    offered: float | None
    """Arrivals per second; None for callers that wait."""
    callers: int
    """At a time, at most."""
    served: float
    """Results per second."""
    waits: Summary
    """Of all results."""
    late: int
    """Arrivals that were given up: not begun when the time was over."""


def closed_loop(call: Call, callers: int, seconds: float) -> Load:
    """Callers that each ask again as soon as they have their result; all finish what they began.

    `call` is for one image, and from several threads at once. After so many seconds nobody asks again; each
    caller asks at least once.
    """
    start = perf_counter()

    def asked() -> Iterator[float]:
        yield perf_counter()
        while (now := perf_counter()) - start < seconds:
            yield now

    waits = _serve(call, callers, asked)
    return Load(None, callers, len(waits) / (perf_counter() - start), Summary.of(waits), 0)


def open_loop(call: Call, rate: float, callers: int, seconds: float) -> Load:
    """Arrivals at even intervals, whatever became of the earlier ones, served in their order.

    Args:
        call: for one image; from several threads at once.
        rate: arrivals per second.
        callers: that serve at a time; further arrivals wait.
        seconds: during which images arrive. Those that nobody has begun by then are given up, so that a rate
            that is too high ends too; the first one is always served.
    """
    start = perf_counter()
    arrivals = max(int(rate * seconds), 1)
    taking, numbers = Lock(), iter(range(arrivals))

    def arrived() -> Iterator[float]:
        while True:
            with taking:
                number = next(numbers, None)
            if number is None:
                return
            arrival = start + number / rate
            sleep(max(arrival - perf_counter(), 0.0))
            if number and perf_counter() - start >= seconds:
                return
            yield arrival

    waits = _serve(call, callers, arrived)
    served = len(waits) / (perf_counter() - start)
    return Load(rate, callers, served, Summary.of(waits), arrivals - len(waits))


def whole_batch(batch: Batch | SharedBatch) -> float:
    """Seconds of a batch, from the first file read to the last one written.

    Raises:
        JobError: when one of its pictures was not done.
    """
    start = perf_counter()
    batch.run()
    seconds = perf_counter() - start
    failed = [outcome.error for outcome in batch.outcomes if outcome.status != "done"]
    if failed:
        raise JobError(f"{len(failed)} of {len(batch.outcomes)} images failed: {failed[0]}")
    return seconds


def knee(loads: Sequence[Load], patience: float) -> float | None:
    """The highest rate that was served in time: no arrival given up, and 95 % within `patience` seconds.

    Rates above one that was not served in time do not count. None where not even the lowest was.
    """
    found = None
    for load in sorted(loads, key=lambda each: each.offered or 0.0):
        if load.late or load.waits.p95 > patience:
            break
        found = load.offered
    return found


def _serve(call: Call, callers: int, begun: Callable[[], Iterator[float]]) -> list[float]:
    """Call for everything that `begun` gives each of the callers, and return the seconds since it began."""

    def waits(_: int) -> list[float]:
        taken = []
        for moment in begun():
            call()
            taken.append(perf_counter() - moment)
        return taken

    with ThreadPoolExecutor(callers, "caller") as threads:
        return [wait for each in threads.map(waits, range(callers)) for wait in each]
