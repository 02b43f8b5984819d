"""`bench ray`, on a cluster of its own and a bundle of a few kilobytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.fake_bundle import write_fake_bundle

from s3diff_benchmarks.clusters.sharing import RayBenchRequest, run_ray_bench
from s3diff_runtime.errors import RequestError


@pytest.mark.slow
def test_both_sides_take_turns(tmp_path: Path) -> None:
    bundle = write_fake_bundle(tmp_path / "bundle", "dynamic")
    asked = RayBenchRequest(bundle, pictures=16, rounds=2, engine="onnx", threads=1)
    (table,) = run_ray_bench(asked).tables
    alone, shared = table.rows
    assert (alone[0], alone[1], alone[4], alone[8]) == ("upscale", "onnx", 2, 1.0)
    assert (shared[0], shared[1]) == ("upscale --ray", "onnx")
    assert str(shared[3]).split(",")[0] == "cpu"
    rates = [cell for cell in shared[5:8] if isinstance(cell, float)]
    assert len(rates) == 3
    assert 0 < rates[0] <= rates[1] <= rates[2]


def test_requests_that_cannot_be() -> None:
    with pytest.raises(RequestError, match="pictures is 1, expected 8 or more"):
        RayBenchRequest(Path("b"), pictures=1)
