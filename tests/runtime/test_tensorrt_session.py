"""Bundles on TensorRT engines, over a fake GPU that checks every call: what they compute, what they copy."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.fake_bundle import BINS, dark_noise, write_fake_bundle
from tests.runtime.fake_cuda import DeviceFault, FakeCuda, Violation
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import ICudaEngine, IExecutionContext, install_fakes

from s3diff_runtime import JobError, Result, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.engine_records import Profile, Range
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.interface import Engine, Session
from s3diff_runtime.engines.tensorrt.api import TensorRt
from s3diff_runtime.engines.tensorrt.graphs import StageContext
from s3diff_runtime.engines.tensorrt.lanes import Lane

OPTIONS = UpscaleOptions(tile=32, overlap=8, batch=3, threads=1)
ENGINES = ("tensorrt", "onnx")
KINDS: dict[str, dict[str, Any]] = {
    "merged": {"lora_mode": "merged"},
    "dynamic": {"lora_mode": "dynamic"},
    "fused": {"lora_mode": "fused"},
    "prompts": {"lora_mode": "dynamic", "prompts": "runtime"},
    "unguided": {"lora_mode": "fused", "guidance": "off"},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {name: write_fake_bundle(folder / name, **options) for name, options in KINDS.items()}
    for bundle in made.values():
        add_engines(bundle)
    return made


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A GPU whose contract was kept and whose memory is free when the test ends."""
    cuda = FakeCuda(gpus=2)
    install_fakes(monkeypatch, cuda)
    yield cuda
    gc.collect()
    assert cuda.violations == []
    assert cuda.leaks() == []


def upscale(bundle: Path, images: list[np.ndarray], engine: str, **asked: Any) -> list[Result]:  # noqa: ANN401
    device = "cpu" if engine == "onnx" else "cuda"
    with Upscaler.open(bundle, engine, device, OPTIONS) as upscaler:
        return upscaler(images, **asked)


def opened(bundle: Path, stage: str) -> tuple[Engine, Session]:
    engine, chosen = open_engine(Bundle.open(bundle), "tensorrt", "cuda")
    return engine, engine.open(chosen.folder / chosen.graph(stage, "shared"), chosen.manifest.stages[stage])


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_results_equal_those_of_onnx_runtime(bundles: dict[str, Path], gpu: FakeCuda, kind: str) -> None:
    sides = [(16, 12), (40, 50), (16, 12), (31, 9), (70, 33), (16, 12), (16, 12), (1, 1)]
    images = [dark_noise(*side, seed=number) for number, side in enumerate(sides)]
    results = upscale(bundles[kind], images, "tensorrt", color_fix="wavelet")
    for found, expected in zip(results, upscale(bundles[kind], images, "onnx"), strict=True):
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert (found.estimated, found.bin, found.tiles) == (expected.estimated, expected.bin, expected.tiles)
        assert (found.engine, found.device, expected.engine) == ("tensorrt", "cuda:0", "onnx")


def test_settings_reach_the_stages(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    image, asked = dark_noise(20, 24), {"noise": 0.5, "guidance": 1.5, "color_fix": "none"}
    prompts = {"prompt": "dark", "negative_prompt": ""}
    found, expected = (upscale(bundles["prompts"], [image], engine, **asked, **prompts) for engine in ENGINES)
    np.testing.assert_array_equal(found[0].pixels, expected[0].pixels)
    assert found[0].applied == expected[0].applied


def test_small_batches_are_filled_for_engines_of_one_batch(tmp_path: Path, gpu: FakeCuda) -> None:
    four = Range(min=4, opt=4, max=4)
    sides = Range(min=4, opt=16, max=32)
    bundle = write_fake_bundle(tmp_path, "dynamic")
    add_engines(bundle, profile=Profile(batch=four, height=sides, width=sides))
    images = [dark_noise(12, 16, seed=seed) for seed in range(6)]
    with Upscaler.open(bundle, device="cuda") as upscaler:
        assert (upscaler.options.batch, upscaler.options.tile) == (4, 32)
        results = upscaler(images)
    for found, expected in zip(results, upscale(bundle, images, "onnx"), strict=True):
        np.testing.assert_array_equal(found.pixels, expected.pixels)


def test_several_threads_share_an_upscaler(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    images = [dark_noise(8 + seed % 5, 16, seed=seed) for seed in range(24)]
    expected = upscale(bundles["dynamic"], images, "onnx")
    with (
        Upscaler.open(bundles["dynamic"], "tensorrt", "cuda:1", OPTIONS) as upscaler,
        ThreadPoolExecutor(6) as threads,
    ):
        for _ in range(3):
            for found, wanted in zip(threads.map(upscaler, images), expected, strict=True):
                np.testing.assert_array_equal(found.pixels, wanted.pixels)
        assert len([stream for stream in gpu.streams.values() if stream.live]) <= 2, "lanes are bounded"


# --- what is copied, kept and replayed -------------------------------------------------------------


def test_only_the_image_and_scores_cross_the_bus(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    image = dark_noise(16, 24)
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler:
        gpu.copied.clear()
        upscaler([image, image], color_fix="wavelet")
    pixels, scores, guidance = 2 * image.nbytes, 2 * 2 * 4, 4
    estimated = [("in", pixels), ("out", scores)]
    assert gpu.copied == [*estimated, ("in", pixels), ("in", scores), ("in", guidance), ("out", 16 * pixels)]


def test_memory_is_kept_and_graphs_are_replayed(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler:
        image = dark_noise(16, 24)
        first = upscaler(image)
        upscaler(image)  # in the first run later stages have moved the memory that all share
        upscaler(image)
        allocations = gpu.calls["cudaMalloc"], gpu.calls["cudaMallocHost"]
        launches = gpu.calls["cudaGraphLaunch"]
        assert gpu.calls["cudaGraphInstantiate"] == 6, "the stages are captured when they come again"
        for _ in range(3):
            np.testing.assert_array_equal(upscaler(image).pixels, first.pixels)
        assert gpu.calls["cudaGraphLaunch"] == launches + 3 * 6
        upscaler(dark_noise(8, 8))  # a smaller image finds room in the same buffers
        np.testing.assert_array_equal(upscaler(image).pixels, first.pixels)
        assert (gpu.calls["cudaMalloc"], gpu.calls["cudaMallocHost"]) == allocations
        launches += 4 * 6 + 1  # the modulation of the small image is as large as that of the other
        assert gpu.calls["cudaGraphLaunch"] == launches
        assert gpu.calls["cudaGraphInstantiate"] == 6
        upscaler(dark_noise(32, 32))
        assert gpu.calls["cudaMalloc"] > allocations[0], "a larger one does not"
        np.testing.assert_array_equal(upscaler(image).pixels, first.pixels)
        assert gpu.calls["cudaGraphLaunch"] == launches, "graphs over freed buffers are gone"


def test_tile_edge_tile(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    """Each has graphs of its own, which the other does not touch."""
    tile, edge = dark_noise(16, 24), dark_noise(16, 9)
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler:
        first = {id(image): upscaler(image).pixels for image in (tile, edge)}
        for image in (tile, edge, tile) * 3:
            np.testing.assert_array_equal(upscaler(image).pixels, first[id(image)])
        launches = gpu.calls["cudaGraphLaunch"]
        for image in (tile, edge, tile):
            np.testing.assert_array_equal(upscaler(image).pixels, first[id(image)])
        assert gpu.calls["cudaGraphLaunch"] == launches + 3 * 6, "all stages of both are launches"


def test_exact_shapes_run_in_the_profile_that_was_tuned_for_them(
    tmp_path: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_fake_bundle(tmp_path, "dynamic")
    sides, batch = Range(min=4, opt=16, max=64), Range(min=1, opt=1, max=4)
    add_engines(bundle, profile=Profile(batch=batch, height=sides, width=sides), exact_batches=(1, 4))
    ran: list[tuple[tuple[int, ...], int]] = []
    execute = IExecutionContext.execute_async_v3

    def noted(context: IExecutionContext, stream_handle: int) -> bool:
        if "vae_modulation" in context._engine.inputs:
            ran.append((context._shapes["image"][:3], context._profile))
        return execute(context, stream_handle)

    monkeypatch.setattr(IExecutionContext, "execute_async_v3", noted)
    exact, other = dark_noise(16, 16), dark_noise(16, 12)
    with Upscaler.open(bundle, "tensorrt", "cuda") as upscaler:
        for images in ([exact], [exact] * 4, [exact] * 3, [other], [exact]):
            for found, expected in zip(upscaler(images), upscale(bundle, images, "onnx"), strict=True):
                np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert [*dict.fromkeys(ran)] == [((1, 16, 16), 0), ((4, 16, 16), 1), ((3, 16, 16), 2), ((1, 16, 12), 2)]


def test_the_double_sees_graphs_whose_context_has_changed(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT replays wrong pixels then, and says nothing."""
    contexts: dict[int, StageContext] = {}

    def shared_by_all_graphs(api: TensorRt, engine: Any, lane: Lane, profile: int) -> StageContext:  # noqa: ANN401
        return contexts.setdefault(id(engine), StageContext(api, engine, lane, profile))

    install_fakes(monkeypatch, FakeCuda())
    monkeypatch.setattr("s3diff_runtime.engines.tensorrt.session.StageContext", shared_by_all_graphs)
    first, second = dark_noise(16, 24), dark_noise(8, 8)
    with (
        Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler,
        pytest.raises(Violation, match="a graph was launched after its context changed"),
    ):
        for image in (first, first, first, first, second, first):
            upscaler(image)


def test_without_contexts_for_graphs_there_are_no_graphs(
    bundles: dict[str, Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = dark_noise(16, 24)
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler:
        first = upscaler(image)
        monkeypatch.setattr(ICudaEngine, "create_execution_context", lambda self, how: None)
        for _ in range(3):
            np.testing.assert_array_equal(upscaler(image).pixels, first.pixels)
    assert gpu.calls["cudaStreamBeginCapture"] == 0


def test_work_that_cannot_be_captured_runs_without_graphs(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    image = dark_noise(16, 24)
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler:
        first = upscaler(image)
        for number in range(1, 7):
            gpu.fail("cudaStreamEndCapture", number, gpu.cudaError_t.cudaErrorStreamCaptureUnsupported)
        for _ in range(3):
            np.testing.assert_array_equal(upscaler(image).pixels, first.pixels)
    assert gpu.calls["cudaGraphLaunch"] == 0
    assert gpu.calls["cudaStreamBeginCapture"] == 6, "each stage tries once"


def test_memory_that_tensorrt_cannot_tell_is_an_error(
    bundles: dict[str, Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives zero then, and would write where nothing was allocated."""

    def fail(context: IExecutionContext) -> int:
        context._engine.logger.log(context._engine.logger.Severity.ERROR, "shapes are missing")
        return 0

    monkeypatch.setattr(IExecutionContext, "update_device_memory_size_for_shapes", fail)
    with pytest.raises(JobError, match="finding the memory that the shapes need: shapes are missing"):
        upscale(bundles["dynamic"], [dark_noise(8, 8)], "tensorrt")


def test_the_budget_of_bins_is_half_of_what_is_free(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    gpu.memory = 2**24
    for options, expected in ((OPTIONS, 2**23), (OPTIONS.but(memory_mib=3), 3 * 2**20)):
        with Upscaler.open(bundles["merged"], "tensorrt", "cuda", options) as upscaler:
            assert upscaler._network is not None
            assert upscaler._network._sessions._budget == expected
    with Upscaler.open(bundles["merged"], "onnx", "cpu", OPTIONS) as upscaler:
        assert upscaler._network is not None
        assert upscaler._network._sessions._budget == 4096 * 2**20


def test_stages_are_timed_on_the_device(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    """The fake device's clock goes on by a millisecond an event."""
    result = upscale(bundles["dynamic"], [dark_noise(16, 24)], "tensorrt")[0]
    stages = ["modulation", "vae_encoder", "unet", "vae_decoder", "finish_wavelet"]
    assert [*result.seconds] == ["upload", "estimator", "download", *stages, "host"]
    assert [result.seconds[stage] for stage in ("estimator", *stages)] == pytest.approx([0.001] * 6)
    copies = [result.seconds[copy] for copy in ("upload", "download")]  # one of each for either chain
    assert copies == pytest.approx([0.002] * 2)


def test_a_bin_that_leaves_stays_until_its_work_is_done(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    """With room for one bin only, each stage drops the one before, whose work has only been queued."""
    images = [dark_noise(12, 12, seed=seed) for seed in range(3)]
    options = UpscaleOptions(memory_mib=1, threads=1)
    with Upscaler.open(bundles["merged"], "tensorrt", "cuda", options) as upscaler:
        assert upscaler._network is not None
        upscaler._network._sessions._budget = 1
        for bin in BINS[:4]:
            for found in upscaler(images, noise=bin.noise, blur=bin.blur):
                assert found.bin == bin
        assert len(upscaler._network._sessions._binned) == 1


# --- a session by itself --------------------------------------------------------------------------


def test_arrays_give_arrays(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    _engine, session = opened(bundles["dynamic"], "estimator")
    image = dark_noise(8, 12)[None]
    first = session.run({"image": image})["degradation"]
    assert isinstance(first, np.ndarray)
    session.run({"image": np.full_like(image, 200)})
    np.testing.assert_allclose(first, image.mean((1, 2))[:, :2] / 255, rtol=1e-5)


def test_tensors_are_gone_with_their_lane(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    engine, session = opened(bundles["dynamic"], "estimator")
    image = dark_noise(8, 12)[None]
    with engine.lane(Clock()) as lane:
        uploaded = lane.upload("image", image)
        scores = session.run({"image": uploaded})["degradation"]
        np.testing.assert_array_equal(np.asarray(uploaded), image)
    for use in (lambda: np.asarray(scores), lambda: session.run({"image": uploaded})):
        with pytest.raises(JobError, match=r"after its lane was given back"):
            use()


def test_tensors_of_one_chain_do_not_overwrite_each_other(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    engine, session = opened(bundles["dynamic"], "estimator")
    images = [dark_noise(8, 12, seed=seed)[None] for seed in range(3)]
    with engine.lane(Clock()) as lane:
        scores = [session.run({"image": lane.upload("image", image)})["degradation"] for image in images]
        for image, score in zip(images, scores, strict=True):
            np.testing.assert_allclose(np.asarray(score), image.mean((1, 2))[:, :2] / 255, rtol=1e-5)


def test_tensors_of_two_lanes_do_not_mix(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    engine, session = opened(bundles["dynamic"], "vae_encoder")
    matrices = np.zeros((1, 2, 2, 2), np.float32)
    with engine.lane(Clock()) as first, engine.lane(Clock()) as second:
        inputs = {
            "image": first.upload("image", dark_noise(8, 8)[None]),
            "vae_modulation": second.upload("vae_modulation", matrices),
        }
        with pytest.raises(JobError, match=r"on several lanes"):
            session.run(inputs)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((1, 97, 8, 3), np.uint8), r"uint8 \[1, 97, 8, 3\]"),
        (np.zeros((7, 8, 8, 3), np.uint8), r"uint8 \[7, 8, 8, 3\]"),
        (np.zeros((8, 8, 3), np.uint8), r"uint8 \[8, 8, 3\]"),
        (np.zeros((1, 8, 8, 3), np.float32), r"float32 \[1, 8, 8, 3\]"),
    ],
)
def test_shapes_beyond_the_profile(
    bundles: dict[str, Path], gpu: FakeCuda, image: np.ndarray, found: str
) -> None:
    _engine, session = opened(bundles["dynamic"], "estimator")
    limits = r"the engine takes uint8 from \[1, 1, 1, 3\] to \[6, 96"
    with pytest.raises(JobError, match=rf"stage estimator failed .*image is {found}, and {limits}"):
        session.run({"image": image})


def test_fault_on_the_device_names_the_call_and_asks_for_a_new_process(
    bundles: dict[str, Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = dark_noise(8, 8)
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", OPTIONS) as upscaler:
        upscaler(image)
        monkeypatch.setattr("tests.runtime.fake_tensorrt._compute", _faulty)
        with pytest.raises(
            JobError, match=r"cudaStreamSynchronize: cudaErrorIllegalAddr.*restart the process"
        ):
            upscaler(image)
        with pytest.raises(JobError, match=r"cudaErrorIllegalAddr.*nvidia-smi.*restart the process"):
            upscaler(image)
    assert "failed" not in caplog.text, "nothing can be freed any more, and nobody needs to hear of it"


def _faulty(*_: object) -> None:
    raise DeviceFault


def test_refusal_of_tensorrt_comes_with_its_reason(
    bundles: dict[str, Path], gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(context: IExecutionContext, stream_handle: int) -> bool:
        context._engine.logger.log(context._engine.logger.Severity.ERROR, "no kernel\nimage")
        context._engine.logger.log(context._engine.logger.Severity.WARNING, "chatter")
        return False

    monkeypatch.setattr(IExecutionContext, "execute_async_v3", refuse)
    message = r"stage estimator failed on the GPU: tensorrt 10.* failed queueing the stage: no kernel image$"
    with pytest.raises(JobError, match=message):
        upscale(bundles["dynamic"], [dark_noise(8, 8)], "tensorrt")


@pytest.mark.filterwarnings("ignore:overflow")
def test_values_that_are_not_finite_are_found_on_request(tmp_path: Path, gpu: FakeCuda) -> None:
    bundle = write_fake_bundle(tmp_path, "dynamic")
    add_engines(bundle)
    options = UpscaleOptions(check_finite=True, threads=1)
    with Upscaler.open(bundle, "tensorrt", "cuda", options) as upscaler:
        upscaler(dark_noise(8, 8))
        with pytest.raises(JobError, match=r"stage unet gave values of x0 that are not finite"):
            upscaler(dark_noise(8, 8), guidance=3e38 * 8)
