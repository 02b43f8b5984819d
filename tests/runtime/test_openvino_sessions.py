"""For which shapes OpenVINO compiles a graph, and how its requests are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.openvino_tools import count_compilations, noise, opened

from s3diff_runtime import JobError
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.openvino import OpenVinoSession, _Requests


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("bundle")
    return Bundle.open(write_fake_bundle(folder / "fused", "fused", external_data=True))


def compiled_estimator(bundle: Bundle) -> openvino.CompiledModel:
    return openvino.Core().compile_model(
        bundle.folder / bundle.manifest.stages["estimator"].graphs["shared"], "CPU"
    )


def test_the_first_shapes_get_a_graph_of_their_own_and_all_others_one(
    fused: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, session = count_compilations(monkeypatch), opened(fused, "estimator")
    assert not compiled
    expected = {size: noise(1, size, 8, 3).mean((1, 2))[:, :2] / 255 for size in (8, 16, 24)}
    for size in (16, 8, 16, 24, 8, 24):
        found = session.run({"image": noise(1, size, 8, 3)})["degradation"]
        np.testing.assert_allclose(np.asarray(found), expected[size], rtol=1e-5)
    assert [model.is_dynamic() for model in compiled] == [False, True]


def test_a_large_graph_is_held_once(fused: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3diff_runtime.engines.openvino.LARGE", -1)
    compiled, session = count_compilations(monkeypatch), opened(fused, "estimator")
    assert isinstance(session, OpenVinoSession)
    for size in (16, 16, 8, 16):
        session.run({"image": noise(1, size, 8, 3)})
        assert len(session._graphs) == 1
    assert [model.is_dynamic() for model in compiled] == [False, True]


def test_requests_are_used_again_but_not_after_a_failure(fused: Bundle) -> None:
    class Counting:
        outputs, made = compiled_estimator(fused).outputs, 0

        def create_infer_request(self) -> openvino.InferRequest:
            self.made += 1
            return compiled_estimator(fused).create_infer_request()

    session, graph = opened(fused, "estimator"), Counting()
    assert isinstance(session, OpenVinoSession)
    session._graphs[None] = _Requests(graph)
    kept = [session.run({"image": noise(1, size, 8, 3)})["degradation"] for size in (8, 16, 8)]
    assert graph.made == 1
    np.testing.assert_array_equal(kept[0], kept[2])
    assert not np.array_equal(kept[0], kept[1]), "an earlier output was overwritten"
    with pytest.raises(JobError, match="failed on cpu"):
        session.run({"image": np.zeros((1, 8, 8, 4), np.uint8)})
    session.run({"image": noise(1, 8, 8, 3)})
    assert graph.made == 2


def test_threads_are_not_bound_to_cores(fused: Bundle) -> None:
    """Those of two processes would meet on the first ones: two of one thread each served half."""
    session = opened(fused, "estimator")
    assert isinstance(session, OpenVinoSession)
    session.run({"image": noise(1, 8, 8, 3)})
    (requests,) = session._graphs.values()
    assert requests.graph.get_property("ENABLE_CPU_PINNING") is False
