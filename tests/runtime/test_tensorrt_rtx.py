"""TensorRT-RTX: the kernels that it compiles on the GPU, kept in the user's cache; what it cannot capture."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.fake_bundle import dark_noise, write_fake_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import ICudaEngine, IExecutionContext, install_fakes

from s3diff_runtime import JobError, Upscaler
from s3diff_runtime.engines.tensorrt.api import TensorRt
from s3diff_runtime.engines.tensorrt.kernels import KernelCache, kernels_file


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with engines of TensorRT-RTX, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = write_fake_bundle(tmp_path / "bundle", "dynamic")
    add_engines(folder, "tensorrt-rtx", gpu=None)
    return folder


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A GPU whose contract is kept."""
    cuda = FakeCuda()
    install_fakes(monkeypatch, cuda)
    yield cuda
    gc.collect()
    assert (cuda.violations, cuda.leaks()) == ([], [])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shapes that engines have compiled kernels for."""
    found: list[str] = []
    make = ICudaEngine.__init__

    def noted(engine: ICudaEngine, *arguments: object) -> None:
        make(engine, *arguments)  # type: ignore[arg-type]
        engine.compiled = found

    monkeypatch.setattr(ICudaEngine, "__init__", noted)
    return found


def run(bundle: Path, *images: np.ndarray) -> None:
    with Upscaler.open(bundle, "tensorrt-rtx", "cuda") as upscaler:
        for image in images:
            upscaler(image)


def test_without_a_place_for_kernels_they_are_compiled_anew(
    bundle: Path, compiled: list[str], leave_home: Callable[[], None]
) -> None:
    leave_home()
    for _ in range(2):
        run(bundle, dark_noise(16, 16))
    assert len(compiled) == 2 * len(set(compiled))


def test_results_equal_those_of_onnx_runtime(bundle: Path) -> None:
    image = dark_noise(20, 24)
    results = []
    for engine, device in (("tensorrt-rtx", "cuda"), ("onnx", "cpu")):
        with Upscaler.open(bundle, engine, device) as upscaler:
            results.append(upscaler(image))
    np.testing.assert_array_equal(results[0].pixels, results[1].pixels)
    assert results[0].engine == "tensorrt-rtx"


def test_what_tensorrt_cannot_capture_is_not_captured(
    bundle: Path, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IExecutionContext, "is_stream_capturable", lambda self, stream: False)
    image = dark_noise(16, 24)
    with Upscaler.open(bundle, "tensorrt-rtx", "cuda") as upscaler:
        first = upscaler(image)
        for _ in range(3):
            np.testing.assert_array_equal(upscaler(image).pixels, first.pixels)
    assert gpu.calls["cudaStreamBeginCapture"] == 0


def test_kernels_are_compiled_once_for_all_contexts_and_processes(
    bundle: Path, tmp_path: Path, compiled: list[str]
) -> None:
    image = dark_noise(16, 24)
    run(bundle, image, image, image)  # three times: the contexts of graphs are others than the first ones
    assert len(compiled) == len(set(compiled)) == 6
    (file,) = tmp_path.glob("caches/**/*.kernels")
    assert file == kernels_file("tensorrt-rtx-0", "Fake GPU")
    assert file.name == "tensorrt-rtx-0-on-fake-gpu.kernels"
    written = file.stat().st_mtime_ns
    run(bundle, image)
    assert len(compiled) == 6
    assert file.stat().st_mtime_ns == written, "nothing new, nothing written"
    run(bundle, dark_noise(8, 8))
    assert len(compiled) > 6
    assert file.stat().st_mtime_ns > written


@pytest.mark.parametrize("content", [b"", b"\0\0 of another version"])
def test_a_cache_that_cannot_be_read_is_as_good_as_none(
    bundle: Path, compiled: list[str], content: bytes
) -> None:
    file = kernels_file("tensorrt-rtx-0", "Fake GPU")
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    run(bundle, dark_noise(16, 24))
    assert len(compiled) == 6
    run(bundle, dark_noise(16, 24))
    assert len(compiled) == 6, "and is replaced"


def test_a_cache_that_cannot_be_written_costs_time_alone(
    bundle: Path, compiled: list[str], tmp_path: Path
) -> None:
    (tmp_path / "caches").write_text("no folder")
    run(bundle, dark_noise(16, 24), dark_noise(16, 24))
    assert len(compiled) == 6


def test_nothing_is_written_before_anything_ran(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "none.kernels")
    cache.save()
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_stays_as_it_was(bundle: Path, compiled: list[str]) -> None:
    before = sorted(bundle.rglob("*"))
    run(bundle, dark_noise(16, 24))
    assert compiled and sorted(bundle.rglob("*")) == before


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (b"nonsense", r"bufferSize >= minBufferSize"),
        (b"", "empty memory buffer"),
        (bytes(4096), r"created with incompatible serialization version"),
    ],
)
def test_the_real_tensorrt_rtx_refuses_what_is_no_plan(
    plan: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `Runtime` needs no GPU to look at a plan."""
    monkeypatch.undo()
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(JobError, match=rf"tensorrt-rtx 1.* failed loading the engine: .*{reason}") as failure:
        TensorRt("tensorrt-rtx").deserialize(plan)
    assert type(failure.value) is JobError and "catchCudaError" not in str(failure.value)
