"""Chains of stages on the processor, where every tensor is an array."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any

from numpy.typing import NDArray

from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import LANES, Value
from s3diff_runtime.engines.standing import Standing


class HostLanes:
    """As many chains at a time as `LANES`; further ones wait."""

    def __init__(self) -> None:
        self._turns = BoundedSemaphore(LANES)
        self._standing = Standing[Mapping[str, Value]](LANES)

    @contextmanager
    def lane(self, clock: Clock) -> Iterator[HostLane]:
        """See `Engine.lane`."""
        with self._turns:
            yield HostLane(self._standing, clock)


class HostLane:
    """See `Lane`."""

    def __init__(self, standing: Standing[Mapping[str, Value]], clock: Clock) -> None:
        self.standing, self.timed = standing.get, clock.running

    def upload(self, name: str, array: NDArray[Any]) -> Value:
        """See `Lane.upload`; there is nothing to do."""
        return array
