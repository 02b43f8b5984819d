"""Lanes of engines that wait for every stage: whose turn it is, and what stays for the next chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any

from numpy.typing import NDArray

from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import LANES, Lane, Value
from s3diff_runtime.engines.standing import Standing

Upload = Callable[[str, NDArray[Any]], Value]


class Lanes:
    """As many chains at a time as `most`; further ones wait.

    Args:
        most: chains, and results that stay for later ones.
        upload: see `Lane.upload`; where every tensor is an array, there is nothing to do.
    """

    def __init__(self, most: int = LANES, upload: Upload = lambda name, array: array) -> None:
        self._turns, self._upload = BoundedSemaphore(most), upload
        self._standing = Standing[Mapping[str, Value]](most)

    @contextmanager
    def lane(self, clock: Clock) -> Iterator[Lane]:
        """See `Engine.lane`."""
        with self._turns:
            yield WaitingLane(self._upload, self._standing, clock)


class WaitingLane:
    """See `Lane`."""

    def __init__(self, upload: Upload, standing: Standing[Mapping[str, Value]], clock: Clock) -> None:
        self.upload, self.standing, self.timed = upload, standing.get, clock.running
