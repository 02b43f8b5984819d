"""ONNX Runtime on CUDA: which runs are captured, and that no tensor of a graph moves."""

from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from tests.runtime import fake_onnxruntime

from s3diff_runtime.engines import onnx_cuda
from s3diff_runtime.engines.onnx_cuda import CudaSession, CudaSide


@pytest.fixture
def side() -> CudaSide:
    return CudaSide(fake_onnxruntime.module(), 0, exact=True)


def opened(side: CudaSide) -> tuple[CudaSession, Any]:
    session, captures = side.load(Path("unet.onnx"), None)
    return CudaSession(side, session, "unet", captures), session


def doubled(side: CudaSide, session: CudaSession, rows: int, seed: int) -> None:
    """Run one chain, and check what it gives."""
    x = np.random.default_rng(seed).random((rows, 3), np.float32)
    found = session.run({"x": side.upload("x", x)})["y"]
    np.testing.assert_array_equal(np.asarray(found), 2 * x)


def test_shapes_that_come_again_get_graphs_of_their_own(side: CudaSide) -> None:
    """Tile, edge tile, tile: each replays its own, over the buffers that it was captured with."""
    session, real = opened(side)
    for seed in range(12):
        doubled(side, session, rows=4 if seed % 3 else 2, seed=seed)
    assert (real.captured, real.eager + real.captured + real.replayed) == (2, 12)
    assert real.replayed == 12 - 2 - real.eager
    assert real.eager == 4


def test_only_so_many_shapes_get_graphs(side: CudaSide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cuda, "_BUFFERS", 6)
    session, real = opened(side)
    for _ in range(4):
        for rows in range(1, 6):
            doubled(side, session, rows, seed=rows)
    assert real.captured == 4
    for rows in range(1, 40):  # buffers come and go; those of graphs stay
        doubled(side, session, rows, seed=rows)
    assert len(session._places) <= 6
    doubled(side, session, 1, seed=7)


def test_an_input_that_moves_is_not_replayed(side: CudaSide) -> None:
    session, real = opened(side)
    for seed in range(4):
        doubled(side, session, 2, seed)
    moved = fake_onnxruntime.OrtValue(np.ones((2, 3), np.float32))
    found = side.run(session._run, {"x": moved})["y"]
    np.testing.assert_array_equal(np.asarray(found), 2)
    assert real.replayed == 1
    doubled(side, session, 2, seed=9)
    assert real.replayed == 2


def test_a_graph_with_nodes_on_the_cpu_runs_without_capture(
    side: CudaSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_onnxruntime.InferenceSession, "captures_allowed", False)
    session, real = opened(side)
    for seed in range(5):
        doubled(side, session, 2, seed)
    assert (real.eager, real.captured) == (5, 0)


def test_all_runs_are_in_one_thread(side: CudaSide) -> None:
    session, real = opened(side)
    threads = [Thread(target=doubled, args=(side, session, 2, seed)) for seed in range(6)]
    for thread in threads:
        thread.start()
        thread.join()
    assert real.captured == 1


def test_preloading_says_nothing_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` goes there."""
    CudaSide(fake_onnxruntime.module(), 0, exact=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("exact", "tf32"), [(True, 0), (False, 1)])
def test_float32_bundles_are_not_computed_in_tf32(exact: bool, tf32: int) -> None:
    side = CudaSide(fake_onnxruntime.module(), 0, exact)
    assert opened(side)[1].settings["use_tf32"] == tf32
