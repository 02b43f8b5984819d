"""Sessions on ONNX Runtime: what they compute, which devices and graphs they refuse, which stay open."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from time import sleep
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.runtime.fake_bundle import BINS, write_fake_bundle

from s3diff_runtime.bundle.manifest import Stage, nearest_bin
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import LANES, Lane, Session, Value
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.errors import BundleError, JobError, OutOfMemory, RequestError


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_fake_bundle(tmp_path_factory.mktemp("fused"), "fused", external_data=True))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_fake_bundle(tmp_path_factory.mktemp("merged"), external_data=True))


def opened(bundle: Bundle, stage: str, engine: OnnxEngine | None = None) -> Session:
    spec = bundle.manifest.stages[stage]
    return (engine or OnnxEngine()).open(bundle.folder / spec.graphs["shared"], spec)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# --- running --------------------------------------------------------------------------------------


def test_outputs_feed_the_next_session(fused: Bundle) -> None:
    image = noise(2, 8, 12, 3)
    given: dict[str, Value] = {"image": image}
    degradation = opened(fused, "estimator").run(given)["degradation"]
    np.testing.assert_allclose(np.asarray(degradation), image.mean((1, 2))[:, :2] / 255, rtol=1e-5)
    modulation = opened(fused, "modulation").run({"degradation": degradation})
    assert list(modulation) == ["vae_modulation", "unet_modulation"]
    expected = np.asarray(degradation)[:, :, None, None] * np.ones((3, 3))
    np.testing.assert_array_equal(np.asarray(modulation["unet_modulation"]), expected)


def test_scalars_and_slices_are_taken_as_they_are(fused: Bundle) -> None:
    latent = np.random.default_rng(0).random((2, 3, 8, 6), np.float32)
    inputs: dict[str, Value] = {
        "latent": latent[:, :, ::2],
        "guidance": np.array(3, np.float32),
        "unet_weights.shift": np.zeros((1, 1, 1, 1), np.float32),
    }
    x0 = opened(fused, "unet").run(inputs)["x0"]
    np.testing.assert_allclose(np.asarray(x0), latent[:, :, ::2] + 0.25, rtol=1e-6)


def test_results_outlive_their_session(fused: Bundle) -> None:
    session = opened(fused, "estimator")
    first = session.run({"image": np.full((1, 4, 4, 3), 51, np.uint8)})["degradation"]
    session.run({"image": np.full((1, 4, 4, 3), 204, np.uint8)})
    del session
    np.testing.assert_allclose(np.asarray(first), [[0.2, 0.2]], rtol=1e-5)


def test_failed_run_names_the_stage(fused: Bundle) -> None:
    two_matrices: dict[str, Value] = {
        "image": noise(2, 8, 8, 3),
        "vae_modulation": np.zeros((2, 2, 2, 2), np.float32),
    }
    with pytest.raises(
        JobError, match=r"stage vae_encoder failed on cpu .*vae_modulation.*smaller tile"
    ) as error:
        opened(fused, "vae_encoder").run(two_matrices)
    assert "\n" not in str(error.value)


def test_threads_are_as_asked(fused: Bundle) -> None:
    session: Any = opened(fused, "estimator", OnnxEngine(threads=1))
    assert session._session.get_session_options().intra_op_num_threads == 1


# --- engines and devices --------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "cpu:0", ""])
def test_unknown_device(device: str) -> None:
    with pytest.raises(RequestError, match=rf"unknown device '{device}'; expected cpu, cuda, or cuda:N"):
        OnnxEngine(device)


def test_cuda_where_the_package_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(RequestError, match=r"cuda:1 was asked for, but .* offers only CPUExec.*\[gpu\]"):
        OnnxEngine("cuda:1")


def test_silent_fallback_is_refused(fused: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime-gpu does without a GPU: it lists CUDA, and opens the session on the CPU."""
    real = onnxruntime.InferenceSession
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    asked: list[Any] = []

    def fall_back(path: str, options: object, providers: list[Any], **_: int) -> onnxruntime.InferenceSession:
        asked.extend(providers)
        return real(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(
        RequestError, match=r"cuda:1 was asked for, .* only CPUExecutionProvider .* nvidia-smi"
    ):
        opened(fused, "estimator", OnnxEngine("cuda:1"))
    found = [(provider, settings["device_id"]) for provider, settings in asked]
    assert found == [("CUDAExecutionProvider", 1)]


def test_missing_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RequestError, match=r"ONNX Runtime is not installed: .*s3diff-export\[cpu\].*\[gpu\]"):
        OnnxEngine()


# --- graphs ---------------------------------------------------------------------------------------


def test_graph_that_is_no_graph(fused: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=r"cannot load .*unet.onnx .*rebuild the bundle") as error:
        OnnxEngine().open(path, fused.manifest.stages["unet"])
    assert "\n" not in str(error.value)


def test_graph_of_another_stage(fused: Bundle) -> None:
    estimator, encoder = (fused.manifest.stages[stage] for stage in ("estimator", "vae_encoder"))
    with pytest.raises(BundleError, match=r"has the inputs image tensor.uint8., .*the manifest says image"):
        OnnxEngine().open(fused.folder / encoder.graphs["shared"], estimator)


def test_lanes_are_few_however_many_callers() -> None:
    engine, running, most = OnnxEngine(), Lock(), [0, 0]

    def chain(_: int) -> None:
        with engine.lane(Clock()):
            with running:
                most[0] += 1
                most[1] = max(most)
            sleep(0.01)
            with running:
                most[0] -= 1

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(chain, range(16)))
    assert most == [0, LANES]


# --- the pool -------------------------------------------------------------------------------------


class CountingEngine:
    """Opens nothing, and notes what it was asked to open."""

    name = "counting"
    precision: str | None = None
    device = "cpu"

    def __init__(self, seconds: float = 0.0) -> None:
        self.opened: list[str] = []
        self.seconds = seconds
        self.refusals = 0

    def open(self, graph: Path, stage: Stage) -> Session:
        sleep(self.seconds)
        if self.refusals:
            self.refusals -= 1
            raise OutOfMemory("no room")
        self.opened.append(f"{graph.parent.name}/{graph.stem}")
        return CountingSession()

    def lane(self, clock: Clock) -> AbstractContextManager[Lane]:
        raise AssertionError("a pool opens no lanes")


class CountingSession:
    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        return dict(inputs)


def test_pool_opens_once(merged: Bundle) -> None:
    engine = CountingEngine()
    pool = SessionPool(merged, engine, 2**30)
    first, second = BINS[:2]
    assert pool.get("estimator") is pool.get("estimator", [first.name])
    assert pool.get("unet", [first.name]) is pool.get("unet", [first.name])
    assert pool.get("unet", [first.name]) is not pool.get("unet", [second.name])
    assert engine.opened == ["onnx/estimator", "n0-b0/unet", "n0-b1/unet"]


def test_pool_drops_the_least_recently_used(merged: Bundle) -> None:
    engine = CountingEngine()
    first, second, third = BINS[:3]
    budget = 2 * merged.size("unet", first.name)
    pool = SessionPool(merged, engine, budget)
    pool.get("finish_none")
    for bin in (first, second, first, third):
        pool.get("unet", [bin.name])
        assert sum(merged.size(*key) for key in pool._binned) <= budget
    assert list(pool._binned) == [("unet", first.name), ("unet", third.name)]
    pool.get("finish_none")
    assert engine.opened.count("onnx/finish_none") == 1
    pool.get("unet", [second.name])
    assert engine.opened.count("n0-b1/unet") == 2


def test_pool_serves_what_exceeds_its_budget(merged: Bundle) -> None:
    pool = SessionPool(merged, CountingEngine(), 1)
    for bin in BINS[:2]:
        pool.get("unet", [bin.name])
        assert list(pool._binned) == [("unet", bin.name)]


def test_bins_leave_for_a_stage_that_serves_all_of_them(merged: Bundle) -> None:
    """Where the device is full, whatever the budget says."""
    engine = CountingEngine()
    pool = SessionPool(merged, engine, 2**30)
    for bin in BINS[:2]:
        pool.get("unet", [bin.name])
    engine.refusals = 1
    pool.get("finish_none")
    assert list(pool._binned) == [("unet", BINS[1].name)]
    engine.refusals = 9
    with pytest.raises(OutOfMemory):
        pool.get("estimator")


def test_size_counts_external_weights(merged: Bundle) -> None:
    graph = merged.folder / merged.manifest.stages["unet"].graphs["n0-b0"]
    data = graph.with_name("unet.onnx.data")
    assert merged.size("unet", "n0-b0") == graph.stat().st_size + data.stat().st_size


def test_pool_opens_once_for_many_threads(merged: Bundle) -> None:
    engine = CountingEngine(seconds=0.02)
    pool = SessionPool(merged, engine, 2**30)
    with ThreadPoolExecutor(8) as threads:
        sessions = list(threads.map(lambda _: pool.get("unet", [BINS[0].name]), range(16)))
    assert len(engine.opened) == 1
    assert all(session is sessions[0] for session in sessions)


# --- bins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "blur", "name"),
    [(0, 0, "n0-b0"), (0.2, 0.3, "n0-b1"), (0.9, 0.6, "n2-b1"), (1, 1, "n2-b2"), (0.25, 0, "n0-b0")],
)
def test_nearest_bin(merged: Bundle, noise: float, blur: float, name: str) -> None:
    nearest = nearest_bin(merged.manifest.bins, noise, blur)
    assert nearest is not None
    assert nearest.name == name


def test_no_bins_no_nearest(fused: Bundle) -> None:
    assert nearest_bin(fused.manifest.bins, 0.5, 0.5) is None
