"""What becomes of work for which memory does not suffice: smaller batches, smaller tiles, a clear end."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.fake_bundle import BINS, dark_noise, enlarged, expected_shift, write_fake_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import install_fakes

from s3diff_runtime import JobError, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.engine_records import Profile, Range
from s3diff_runtime.engines.backoff import Backoff, Sizes
from s3diff_runtime.engines.limits import Limits
from s3diff_runtime.engines.onnx import OnnxSession
from s3diff_runtime.errors import OutOfMemory

pytestmark = pytest.mark.usefixtures("only_onnx")

REASON = "nothing left"

# --- the strategy ---------------------------------------------------------------------------------


def road(sizes: Sizes, images: int, longest: int, profile: Profile | None = None) -> list[tuple[int, int]]:
    """All sizes that are tried for work that never fits."""
    backoff, tried = Backoff(sizes, Limits(16, profile)), [(sizes.batch, sizes.tile)]
    with pytest.raises(OutOfMemory, match=r"out of memory even with .*nothing left.*free memory"):
        while True:
            backoff.shrink(backoff.sizes, images, longest, REASON)
            tried.append((backoff.sizes.batch, backoff.sizes.tile))
    return tried


@pytest.mark.parametrize(
    ("sizes", "images", "longest", "expected"),
    [
        (Sizes(4, 128), 1, 500, [(4, 128), (2, 128), (1, 128), (1, 64), (1, 32), (1, 16)]),
        (Sizes(5, 96), 9, 96, [(5, 96), (2, 96), (1, 96), (1, 48), (1, 16)]),
        (Sizes(4, 64), 1, 64, [(4, 64), (4, 32), (2, 32), (1, 32), (1, 16)]),
        (Sizes(1, 0), 1, 100, [(1, 0), (1, 48), (1, 16)]),
        (Sizes(2, 128), 8, 10, [(2, 128), (1, 128)]),
    ],
)
def test_batches_halve_and_then_tiles(
    sizes: Sizes, images: int, longest: int, expected: list[tuple[int, int]]
) -> None:
    assert road(sizes, images, longest) == expected


def test_limits_of_engines_end_the_road() -> None:
    side = Range(min=48, opt=64, max=128)
    profile = Profile(batch=Range(min=4, opt=4, max=8), height=side, width=side)
    tried = road(Sizes(8, 128), 8, 500, profile)
    assert tried == [(8, 128), (4, 128), (4, 64), (4, 48)]


@given(
    sizes=st.builds(Sizes, st.integers(1, 64), st.integers(0, 64).map(lambda number: 16 * number)),
    images=st.integers(1, 100),
    longest=st.integers(1, 5000),
)
def test_every_step_is_smaller_and_ends_at_the_least(sizes: Sizes, images: int, longest: int) -> None:
    tried = road(sizes, images, longest)
    for (batch, tile), (next_batch, next_tile) in pairwise(tried):
        assert next_tile % 16 == 0
        assert (next_batch < batch and next_tile == tile) or next_tile < (tile or longest)
    batch, tile = tried[-1]
    assert tile == 16 or longest <= 16
    assert batch == 1 or images == 1


def test_threads_with_one_want_shrink_once(caplog: pytest.LogCaptureFixture) -> None:
    backoff = Backoff(Sizes(8, 64), Limits(16, None))
    tried = backoff.sizes
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            backoff.shrink(tried, 8, 64, REASON)
    assert backoff.sizes == Sizes(4, 64)
    assert [record.message for record in caplog.records] == [
        "out of memory with batches of 8, tiles of 64; going on with batches of 4, tiles of 64 (nothing left)"
    ]


# --- ONNX Runtime ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {mode: write_fake_bundle(folder / mode, mode) for mode in ("dynamic", "merged")}
    for bundle in made.values():
        add_engines(bundle)
    return made


MESSAGES = [
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9",
    "CUDA failure 2: out of memory ; GPU=0",
    "bfc_arena.cc:376 Available memory of 5 is smaller than requested bytes of 6",
    "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_onnx_runtime_out_of_memory(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    """It fits when a batch has at most 2 tiles of at most 16 pixels."""

    class Poor:
        """A session of ONNX Runtime on a small device."""

        def __init__(self, session: Any) -> None:  # noqa: ANN401
            self._session = session

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401
            return getattr(self._session, name)

        def run_with_iobinding(self, binding: Any) -> None:  # noqa: ANN401
            self._session.run_with_iobinding(binding)
            count, height, width, _ = binding.get_outputs()[0].shape()
            if count * height * width > 2 * 64 * 64:
                raise RuntimeError(message)

    start = OnnxSession.__init__

    def poor(self: OnnxSession, session: Any, stage: str, *where: Any) -> None:  # noqa: ANN401
        start(self, Poor(session) if stage.startswith("finish") else session, stage, *where)

    monkeypatch.setattr(OnnxSession, "__init__", poor)
    image = dark_noise(50, 70)
    options = UpscaleOptions(tile=32, overlap=12, batch=4, threads=1)
    with Upscaler.open(bundles["dynamic"], options=options) as upscaler:
        result = upscaler(image, noise=0.5, blur=0.25, color_fix="none")
        assert upscaler._restorer.sizes == Sizes(1, 16), "found to fit, and kept"
        assert result.tiles > 12
    assert np.abs(result.pixels.astype(int) - enlarged(image, expected_shift(0.5, 0.25))).max() <= 1


def test_memory_of_the_host(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([MemoryError("no room"), None])
    run = OnnxSession.run

    def failing(session: OnnxSession, inputs: Any) -> Any:  # noqa: ANN401
        error = next(failures, None)
        if error:
            raise error
        return run(session, inputs)

    monkeypatch.setattr(OnnxSession, "run", failing)
    images = [dark_noise(8, 8, seed=seed) for seed in range(4)]
    with Upscaler.open(bundles["dynamic"]) as upscaler:
        assert len(upscaler(images)) == 4
        assert upscaler._restorer.sizes.batch == 2


# --- TensorRT -------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    cuda = FakeCuda()
    install_fakes(monkeypatch, cuda)
    yield cuda
    gc.collect()
    assert (cuda.violations, cuda.leaks()) == ([], [])


@pytest.mark.parametrize("spare", [600_000, 300_000, 200_000, 130_000])
def test_gpu_of_little_memory(bundles: dict[str, Path], gpu: FakeCuda, spare: int) -> None:
    images = [dark_noise(64, 64, seed=seed) for seed in range(5)]
    options = UpscaleOptions(tile=64, overlap=8, threads=1)
    settings: dict[str, Any] = {"noise": 0.25, "blur": 0.5, "color_fix": "none"}
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda", options) as upscaler:
        upscaler(dark_noise(4, 4), **settings)
        gpu.memory = gpu.used() + spare
        for image, result in zip(images, upscaler(images, **settings), strict=True):
            assert np.abs(result.pixels.astype(int) - enlarged(image, expected_shift(0.25, 0.5))).max() <= 1
        assert upscaler._restorer.sizes != Sizes(4, 64)
        failures = gpu.calls["cudaMalloc"]
        upscaler(images, **settings)
        assert gpu.calls["cudaMalloc"] - failures < 20, "what fits is not searched for again"


def test_the_end_of_the_road_is_one_clear_error(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    with Upscaler.open(bundles["dynamic"], "tensorrt", "cuda") as upscaler:
        gpu.memory = gpu.used() + 100
        message = r"out of memory even with batches of 1, tiles of 4, the least .*Fake GPU ran out of memory"
        with pytest.raises(JobError, match=message):
            upscaler([dark_noise(40, 40)] * 2)
        gpu.memory = 2**28
        assert upscaler(dark_noise(4, 4)).pixels.shape == (16, 16, 3)


def test_weights_that_do_not_fit(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    gpu.memory = 100
    with pytest.raises(OutOfMemory, match=r"loading the engine: Requested amount of GPU memory"):
        Upscaler.open(bundles["dynamic"], "tensorrt", "cuda")


def test_other_bins_make_room_for_weights(bundles: dict[str, Path], gpu: FakeCuda) -> None:
    """The budget allows all bins, but the device is smaller than it was taken for."""
    image = dark_noise(4, 4)
    with Upscaler.open(bundles["merged"], "tensorrt", "cuda") as upscaler:
        upscaler(image, noise=0, blur=0)
        gpu.memory = gpu.used() + 2000
        for bin in BINS:
            assert upscaler(image, noise=bin.noise, blur=bin.blur).bin == bin
        assert upscaler._restorer.sizes == Sizes(4, 96)
