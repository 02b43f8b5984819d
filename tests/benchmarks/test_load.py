"""Load: callers that wait and arrivals that do not, on a server whose time is known."""

from __future__ import annotations

from threading import Lock
from time import sleep

import pytest

from s3diff_benchmarks.speed.load import Load, closed_loop, knee, open_loop
from s3diff_benchmarks.statistics import Summary

SERVICE = 0.02


class Server:
    """Serves one call at a time, each in `SERVICE` seconds."""

    def __init__(self) -> None:
        self.calls, self._turn = 0, Lock()

    def __call__(self) -> None:
        with self._turn:
            self.calls += 1
            sleep(SERVICE)


def load(offered: float, p95: float, late: int = 0) -> Load:
    waits = Summary(10, p95, p95, p95, p95, p95, p95, p95)
    return Load(offered, 4, offered, waits, late)


def test_callers_share_a_server() -> None:
    for callers in (1, 4):
        server = Server()
        found = closed_loop(server, callers, 0.5)
        assert (found.callers, found.offered, found.late) == (callers, None, 0)
        assert found.waits.count == server.calls
        assert 0 < found.served <= 1 / SERVICE
        # Little's law, which holds on a busy machine too; the last calls have fewer others beside them.
        assert found.served * found.waits.mean == pytest.approx(callers, rel=0.35)


def test_every_caller_asks_at_least_once() -> None:
    assert closed_loop(Server(), 8, 0.001).waits.count == 8


def test_arrivals_below_capacity_do_not_wait() -> None:
    found = open_loop(Server(), 10, 4, 1.0)
    assert (found.offered, found.waits.count, found.late) == (10, 10, 0)
    assert SERVICE <= found.waits.median < 1 / 10, "none waits for the one before"


def test_arrivals_beyond_capacity_wait_ever_longer_and_are_given_up() -> None:
    found = open_loop(Server(), 200, 4, 0.6)
    assert found.late > 50
    assert found.waits.count + found.late == 120
    assert 0 < found.served <= 1 / SERVICE
    assert found.waits.p95 > 10 * SERVICE, "waiting counts from the arrival, not from the start of service"


def test_one_arrival_is_always_served() -> None:
    assert open_loop(Server(), 0.1, 2, 0.01).waits.count == 1


def test_errors_of_the_call_come_through() -> None:
    def failing() -> None:
        raise ValueError("out of order")

    for run in (lambda: closed_loop(failing, 3, 0.1), lambda: open_loop(failing, 50, 3, 0.1)):
        with pytest.raises(ValueError, match="out of order"):
            run()


def test_knee_is_the_highest_rate_in_time() -> None:
    loads = [load(4, 0.9), load(1, 0.1), load(2, 0.2), load(3, 0.3)]
    assert knee(loads, patience=0.5) == 3
    assert knee([load(1, 0.1), load(2, 0.9), load(3, 0.1)], patience=0.5) == 1, (
        "beyond a bad rate none counts"
    )
    assert knee([load(1, 0.1, late=1)], patience=0.5) is None
