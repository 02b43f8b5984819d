"""`bench serve` on a bundle whose network takes no time: what it counts, and what it finds wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.runtime.fake_bundle import write_fake_bundle

from s3diff_benchmarks.pictures.pixels import given_or_drawn, square_of
from s3diff_benchmarks.report.output import Output
from s3diff_benchmarks.serving.faults import encodings, large_bodies, mutated_pictures
from s3diff_benchmarks.serving.process import LOST, ServiceProcess, Tally
from s3diff_benchmarks.serving.run import ServeBenchRequest, run_serve_bench


def test_load_faults_and_attacks_are_borne(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", "dynamic")
    small: dict[str, Any] = {
        "size": 16,
        "queue": 4,
        "requests": 300,
        "mutated": 200,
        "connections": 6,
        "bodies": 2,
    }
    request = ServeBenchRequest(bundle, output=Output(), timeout=4.0, threads=1, **small)
    findings = run_serve_bench(request)
    load, found = (table.records for table in findings.tables)
    (row,) = load
    assert row["lost"] == row["other answers"] == 0
    answered = [row["answered 200"], row["answered 503"]]
    assert sum(int(count or 0) for count in answered) == row["requests"]
    assert row["requests"] == 300
    assert [fault["borne"] for fault in found] == [True] * 5, found
    assert findings.notes == ()


class Unwell(ServiceProcess):
    """A service that answers everything with one status, and grows."""

    def __init__(self, status: int) -> None:
        self.status, self.grown = status, 0.0

    def ask(self, *_: object, **__: object) -> int:
        self.grown += 100
        return self.status

    def require_alive(self) -> None:
        pass

    @property
    def resident_mib(self) -> float:
        return self.grown


def test_what_is_not_borne_is_seen() -> None:
    pixels = square_of(given_or_drawn(None), 16)
    assert not mutated_pictures(Unwell(500), pixels, 20, 4, lambda done: None).borne
    assert mutated_pictures(Unwell(400), pixels, 20, 4, lambda done: None).borne
    assert not large_bodies(Unwell(413), 2, 1).borne
    tally = Tally()
    for status in (200, 503, LOST, LOST):
        tally.ask(Unwell(status), b"")
    assert str(tally) == "2 × connection broke, 1 × 200, 1 × 503"
    assert len(tally.accepted) == 1
    assert len(encodings(pixels)) == 5
