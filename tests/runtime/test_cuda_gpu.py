"""Lanes, streams, graphs, pinned memory, want of memory and threads on a real GPU.

What stands in for TensorRT has engines of one trivial stage, whose kernels are compiled here. Like those of
TensorRT, its graphs read what their execution context holds when they are launched, so that what would replay
wrong pixels there does so here. It needs neither TensorRT nor a bundle, only numpy, pydantic, cuda-bindings,
NVRTC (which comes with torch) and pytest. Where nothing else is installed:

    PYTHONPATH=runtime python3 -m pytest -c /dev/null --rootdir . --noconftest tests/runtime/test_cuda_gpu.py
"""

import ctypes
import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.tensorrt import session as session_module
from s3diff_runtime.engines.tensorrt.api import TensorRt
from s3diff_runtime.engines.tensorrt.buffers import host_view
from s3diff_runtime.engines.tensorrt.cuda import Cuda, load_runtime
from s3diff_runtime.engines.tensorrt.graphs import StageContext
from s3diff_runtime.engines.tensorrt.lanes import Lane, LanePool
from s3diff_runtime.engines.tensorrt.session import TensorRtSession
from s3diff_runtime.errors import OutOfMemory, S3DiffError

pytestmark = pytest.mark.gpu

KERNELS = """
struct Bindings {
  const unsigned char *image;
  const float *shift;
  unsigned char *scratch, *brighter;
  size_t size;
};

// Slow, so that work that does not wait for other work meets it.
extern "C" __global__ void brighten(const Bindings *bound) {
  const long long start = clock64();
  while (clock64() - start < 100000) {}
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < bound->size; i += gridDim.x * blockDim.x)
    bound->scratch[i] = bound->image[i] + (unsigned char)*bound->shift;
}

extern "C" __global__ void move(const Bindings *bound) {
  for (size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < bound->size; i += gridDim.x * blockDim.x) {
    bound->brighter[i] = bound->scratch[i];
    bound->scratch[i] = 0x5A;
  }
}

extern "C" __global__ void fault(const Bindings *bound) { *(volatile int *)8 = 1; }
"""
TILE, EDGE = (2, 128, 128, 3), (1, 96, 40, 3)
MOST = (4, 512, 512, 3)
HUGE = 2**42
SHIFT = 7


def checked(answer: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """The results of a call of `cuda.bindings`."""
    error, *results = answer
    if int(error):
        raise RuntimeError(str(error))
    return results[0] if len(results) == 1 else results


@cache
def kernel(name: str) -> Any:  # noqa: ANN401
    """A kernel, compiled for the GPU that is the current one. The module that holds it stays loaded."""
    from cuda.bindings import driver, nvrtc

    properties = checked(load_runtime().cudaGetDeviceProperties(0))
    target = [f"--gpu-architecture=sm_{properties.major}{properties.minor}".encode()]
    program = checked(nvrtc.nvrtcCreateProgram(KERNELS.encode(), b"kernels.cu", 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, len(target), target))
    image = bytes(checked(nvrtc.nvrtcGetCUBINSize(program)))
    checked(nvrtc.nvrtcGetCUBIN(program, image))
    module = checked(driver.cuModuleLoadData(image))
    return checked(driver.cuModuleGetFunction(module, name.encode()))


def launch(name: str, stream: int, bindings: int) -> None:
    """Queue a kernel, which reads its bindings when it runs."""
    from cuda.bindings import driver

    shape = (32, 1, 1, 256, 1, 1, 0)
    checked(driver.cuLaunchKernel(kernel(name), *shape, stream, ((bindings,), (ctypes.c_void_p,)), 0))


class Counted:
    """The CUDA runtime, with its calls counted."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._real = load_runtime()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        self.calls[name] += 1
        return getattr(self._real, name)


# --- the stand-in for TensorRT --------------------------------------------------------------------


class Engine:
    """One stage: image uint8 [N, H, W, 3] and shift float32 [] to brighter uint8 [N, H, W, 3]."""

    def __init__(self, module: ModuleType, capturable: bool = True, scratch: int | None = None) -> None:
        self.module, self.capturable, self.scratch = module, capturable, scratch
        pixels = ("UINT8", (-1, -1, -1, 3))
        self.names = {"image": pixels, "shift": ("FLOAT", ()), "brighter": pixels}
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), 1

    def get_tensor_name(self, index: int) -> str:
        return list(self.names)[index]

    def get_tensor_dtype(self, name: str) -> Any:  # noqa: ANN401
        return self.module.DataType[self.names[name][0]]

    def get_tensor_mode(self, name: str) -> Any:  # noqa: ANN401
        return self.module.TensorIOMode.OUTPUT if name == "brighter" else self.module.TensorIOMode.INPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.names[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 1, 1, 3), TILE, MOST] if name == "image" else [(), (), ()]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 1

    def create_execution_context(self, strategy: object) -> "Context":
        return Context(self)


class Context:
    """Holds its bindings in device memory, which kernels, and so graphs too, read when they run."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._runtime = engine, load_runtime()
        self._held = Cuda(self._runtime).allocate(64)
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self._scratch = 0
        self._written: list[int] = []

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if name == "image":
            self._shape = tuple(shape)
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return self._engine.scratch or int(np.prod(self._shape))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return () if name == "shift" else self._shape

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = address

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        runtime = self._runtime
        status = runtime.cudaStreamCaptureStatus
        capturing = checked(runtime.cudaStreamIsCapturing(stream)) != status.cudaStreamCaptureStatusNone
        image, shift, brighter = (self._addresses[name] for name in self._engine.names)
        bindings = [image, shift, self._scratch, brighter, int(np.prod(self._shape))]
        if bindings != self._written:
            if capturing:
                return False  # as TensorRT, which has work left to do after a change of shapes
            content, kind = np.array(bindings, np.uint64), runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            source, size = content.ctypes.data, content.nbytes
            checked(runtime.cudaMemcpyAsync(int(self._held), source, size, kind, stream))
            self._written = bindings
        if capturing and not self._engine.capturable:
            error, *_ = runtime.cudaStreamSynchronize(stream)
            return not int(error)
        launch("brighten", stream, int(self._held))
        launch("move", stream, int(self._held))
        return True


def stand_in() -> ModuleType:
    """The module `tensorrt`."""
    module = ModuleType("tensorrt")
    strategies = ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"]
    Severity = Enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO"])
    vars(module).update(
        __version__="10.13",
        DataType=Enum("DataType", ["FLOAT", "HALF", "UINT8", "INT64"]),
        ExecutionContextAllocationStrategy=Enum("ExecutionContextAllocationStrategy", strategies),
        ILogger=type("ILogger", (), {"Severity": Severity}),
        TensorIOMode=Enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"]),
    )
    return module


class Rig:
    """The layers of the runtime over the GPU and the stand-in."""

    def __init__(self) -> None:
        self.runtime = Counted()
        self.api = TensorRt("tensorrt")
        self.cuda = Cuda(self.runtime)
        self.cuda.activate()
        self.lanes = LanePool(self.cuda)
        self.session = self.open()

    def open(self, **engine: Any) -> TensorRtSession:  # noqa: ANN401
        return TensorRtSession(self.api, Engine(self.api.module, **engine), self.cuda, self.lanes, "brighten")

    def brighten(self, image: np.ndarray, times: int = 1, session: Any = None) -> np.ndarray:  # noqa: ANN401
        """A chain of stages, each of which reads what the one before it gave."""
        with self.lanes.lane(Clock()) as lane:
            shift = lane.upload("shift", np.array(SHIFT, np.float32))
            value: Any = lane.upload("image", image)
            for _ in range(times):
                value = (session or self.session).run({"image": value, "shift": shift})["brighter"]
            return np.asarray(value)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in())
    try:
        yield Rig()
    finally:
        gc.collect()


def picture(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(image: np.ndarray, times: int = 1) -> np.ndarray:
    return image + np.uint8(times * SHIFT)


# --- tests ----------------------------------------------------------------------------------------


def test_chains_of_stages_stay_in_order(rig: Rig) -> None:
    for seed, times in enumerate((1, 5, 9, 5)):
        image = picture(TILE, seed)
        np.testing.assert_array_equal(rig.brighten(image, times), expected(image, times))


def test_pinned_memory_is_known_to_cuda(rig: Rig) -> None:
    pinned = rig.cuda.allocate_pinned(4096)
    kind = checked(rig.runtime.cudaPointerGetAttributes(int(pinned))).type
    assert kind == rig.runtime.cudaMemoryType.cudaMemoryTypeHost
    host_view(int(pinned), (4096,), "uint8")[...] = 3


def test_graphs_of_tile_edge_tile_replay_the_right_pixels(rig: Rig) -> None:
    for turn in range(6):
        for shape in (TILE, EDGE, TILE):
            image = picture(shape, turn)
            np.testing.assert_array_equal(rig.brighten(image, 2), expected(image, 2))
    calls = rig.runtime.calls
    assert 2 <= calls["cudaGraphInstantiate"] <= 8
    assert calls["cudaGraphLaunch"] >= 20, "most of the runs after the first are launches"


def test_graphs_that_share_a_context_replay_wrong_pixels(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test before this one can fail."""
    contexts: dict[int, StageContext] = {}

    def shared(api: TensorRt, engine: Any, lane: Lane, *rest: Any) -> StageContext:  # noqa: ANN401
        return contexts.setdefault(id(engine), StageContext(api, engine, lane, *rest))

    monkeypatch.setattr(session_module, "StageContext", shared)
    differ = 0
    for turn in range(6):
        for shape in (TILE, EDGE, TILE):
            image = picture(shape, turn)
            differ += not np.array_equal(rig.brighten(image), expected(image))
    assert differ


def test_work_that_cannot_be_captured_runs_without_graphs(rig: Rig) -> None:
    session = rig.open(capturable=False)
    for seed in range(4):
        image = picture(TILE, seed)
        np.testing.assert_array_equal(rig.brighten(image, session=session), expected(image))
    assert rig.runtime.calls["cudaStreamBeginCapture"] >= 1
    assert rig.runtime.calls["cudaGraphLaunch"] == 0


def test_a_capture_is_not_disturbed_by_other_threads(rig: Rig) -> None:
    stream, device, pinned = rig.cuda.make_stream(), rig.cuda.allocate(64), rig.cuda.allocate_pinned(64)
    content = host_view(int(pinned), (64,), "uint8")
    content[...] = 1

    def allocate() -> None:
        rig.cuda.activate()
        rig.cuda.allocate(2**20).close()

    def enqueue() -> None:
        rig.cuda.copy(int(device), int(pinned), 64, stream)
        other = threading.Thread(target=allocate)
        other.start()
        other.join()

    graph = rig.cuda.capture(stream, enqueue)
    content[...] = 2  # a capture runs nothing: the launch copies what is there then
    rig.cuda.launch(graph, stream)
    rig.cuda.synchronize(stream)
    content[...] = 0
    rig.cuda.copy(int(pinned), int(device), 64, stream, to_host=True)
    rig.cuda.synchronize(stream)
    assert content.tolist() == [2] * 64


def test_threads_get_their_own_results(rig: Rig) -> None:
    shapes = [TILE, EDGE, (1, 200, 64, 3), (3, 32, 300, 3)]

    def one(seed: int) -> bool:
        image, times = picture(shapes[seed % len(shapes)], seed), 1 + seed % 3
        return np.array_equal(rig.brighten(image, times), expected(image, times))

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(one, list(range(60)) * 3))
    assert rig.runtime.calls["cudaStreamCreateWithFlags"] <= 2, "lanes are bounded"


def test_want_of_memory_is_told_and_gives_all_of_it_back(rig: Rig) -> None:
    image = picture(MOST)
    rig.brighten(picture(EDGE))  # loads the kernels
    before = checked(rig.runtime.cudaMemGetInfo())[0]
    rig.brighten(image, 4)
    greedy = rig.open(scratch=HUGE)
    with pytest.raises(OutOfMemory, match=r"ran out of memory \(cudaMalloc\); smaller tiles"):
        rig.brighten(image, session=greedy)
    gc.collect()
    free = checked(rig.runtime.cudaMemGetInfo())[0]
    assert free >= before - 2**25, "idle lanes and the one that failed are freed"
    np.testing.assert_array_equal(rig.brighten(image), expected(image))


def test_memory_is_kept_while_shapes_repeat(rig: Rig) -> None:
    for _ in range(3):
        rig.brighten(picture(TILE), 3)
    calls = rig.runtime.calls
    before = calls["cudaMalloc"], calls["cudaMallocHost"]
    for shape in (TILE, EDGE, TILE, EDGE):
        rig.brighten(picture(shape), 3)
    assert (calls["cudaMalloc"], calls["cudaMallocHost"]) == before


def test_stages_are_timed_on_the_device(rig: Rig) -> None:
    clock = Clock()
    with rig.lanes.lane(clock) as lane:
        shift = lane.upload("shift", np.array(SHIFT, np.float32))
        values = {"image": lane.upload("image", picture(TILE)), "shift": shift}
        with lane.timed("brighten"):
            rig.session.run(values)
    assert 1e-5 < clock.seconds["brighten"] < 1


def test_after_a_fault_the_advice_is_to_start_again() -> None:
    """In a process of its own, which CUDA serves no more."""
    command = [sys.executable, __file__]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    told = ended.stdout.splitlines()
    assert len(told) == 2, ended.stderr
    assert all(line.startswith("JobError the GPU failed in") for line in told)
    assert all("IllegalAddress" in line and "restart the process" in line for line in told)


def fault() -> None:
    """Let a kernel write where it may not, and tell what this and the next call raise."""
    cuda = Cuda(load_runtime())
    cuda.activate()
    stream = cuda.make_stream()
    launch("fault", int(stream), 0)
    for call in (lambda: cuda.synchronize(stream), lambda: cuda.allocate(1)):
        try:
            call()
        except S3DiffError as error:
            sys.stdout.write(f"{type(error).__name__} {error}\n")


if __name__ == "__main__":
    fault()
