"""Counts the time of the stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Clock:
    """Seconds spent in each stage, of all the work that was given this clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Count the time of the block for `stage`."""
        start = perf_counter()
        yield
        self.add({stage: perf_counter() - start})

    def add(self, seconds: dict[str, float], share: float = 1.0) -> None:
        """Count a share of what another clock shows."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + share * spent
