"""The layer over the CUDA runtime and the one over TensorRT: errors, names, what is freed."""

from __future__ import annotations

import gc
import inspect
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime as real
from tests.runtime import fake_tensorrt
from tests.runtime.fake_cuda import FakeCuda

from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.flavours import COMPILED_FLAVOURS, FLAVOURS, CompiledFlavour
from s3diff_runtime.engines.tensorrt.api import TensorRt
from s3diff_runtime.engines.tensorrt.buffers import Buffers, host_view
from s3diff_runtime.engines.tensorrt.cuda import Cuda, Gpu, Handle, count_gpus, load_runtime
from s3diff_runtime.engines.tensorrt.graphs import GraphCache
from s3diff_runtime.engines.tensorrt.lanes import LanePool
from s3diff_runtime.errors import JobError, OutOfMemory, RequestError


def calls_of(fake: FakeCuda) -> list[str]:
    return [name for name, _ in inspect.getmembers(fake, inspect.ismethod) if name.startswith("cuda")]


def has_gpu() -> bool:
    error, count = real.cudaGetDeviceCount()
    return error == real.cudaError_t.cudaSuccess and bool(count)


# --- what the fakes stand for ---------------------------------------------------------------------


def test_fake_calls_are_real_ones_with_as_many_arguments() -> None:
    fake = FakeCuda()
    assert len(calls_of(fake)) > 20
    for name in calls_of(fake):
        documented = getattr(real, name).__doc__.splitlines()[0]  # "cudaMalloc(size_t size)"
        listed = documented.partition("(")[2].rpartition(")")[0]
        expected = len(inspect.signature(getattr(fake, name)).parameters)
        assert len([part for part in listed.split(",") if part]) == expected, documented


@pytest.mark.parametrize("name", ["Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "ILogger"])
def test_fake_objects_have_only_what_tensorrt_rtx_has(name: str) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    fake, genuine = getattr(fake_tensorrt, name), getattr(module, name)
    public = [member for member in vars(fake) if not member.startswith("_")]
    assert [member for member in public if not hasattr(genuine, member)] == []


@pytest.mark.parametrize(
    "name",
    [
        "DataType",
        "TensorIOMode",
        "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "ILogger.Severity",
    ],
)
def test_fake_enumerators_are_real_ones(name: str) -> None:
    module = pytest.importorskip("tensorrt_rtx")
    fake, genuine = fake_tensorrt, module
    for part in name.split("."):
        fake, genuine = getattr(fake, part), getattr(genuine, part)
    assert [member.name for member in fake if not hasattr(genuine, member.name)] == []  # type: ignore[attr-defined]


def test_names_of_dtypes_are_those_of_tensorrt_rtx() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    assert [module.DataType.HALF.name, module.DataType.UINT8.name] == ["HALF", "UINT8"]


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_machine_without_a_gpu_is_refused_before_tensorrt_is_touched() -> None:
    with pytest.raises(RequestError, match=r"no usable GPU was found .*nvidia-smi.*use device cpu"):
        count_gpus(load_runtime())


def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(RequestError, match=r"pip install 's3diff-export\[tensorrt\]', or \[gpu\]"):
        load_runtime()


@pytest.mark.parametrize(("gpus", "index"), [(0, 0), (2, 2)])
def test_gpu_that_is_not_there(gpus: int, index: int) -> None:
    with pytest.raises(RequestError, match=r"no usable GPU|cuda:2 was asked for, .* has 2 GPU"):
        Cuda(FakeCuda(gpus=gpus), index)


def test_gpu_is_described() -> None:
    assert Cuda(FakeCuda(gpus=2), 1).gpu == Gpu(1, "Fake GPU", "8.9", "13.0")


# --- errors ---------------------------------------------------------------------------------------


def test_want_of_memory_has_its_own_error() -> None:
    cuda = Cuda(FakeCuda(memory=1000))
    with pytest.raises(OutOfMemory, match=r"Fake GPU ran out of memory \(cudaMalloc\); smaller tiles"):
        cuda.allocate(1001)


def test_after_fatal_errors_the_advice_is_to_restart_the_process() -> None:
    """CUDA's own documentation says of which errors."""
    for error in real.cudaError_t:
        if error in (real.cudaError_t.cudaSuccess, real.cudaError_t.cudaErrorMemoryAllocation):
            continue
        fake = FakeCuda()
        fake.fail("cudaSetDevice", 1, error)
        with pytest.raises(JobError) as failure:
            Cuda(fake).activate()
        documented = "terminated and relaunched" in " ".join((error.__doc__ or "").split())
        fatal = "restart the process, which CUDA serves no more" in str(failure.value)
        assert fatal == documented, error.name


def use_everything(cuda: Cuda) -> None:
    """One call of every function of the layer; frees all of it."""
    cuda.activate()
    stream, start, end = cuda.make_stream(), cuda.make_event(), cuda.make_event()
    device, pinned = cuda.allocate(64), cuda.allocate_pinned(64)
    content = host_view(int(pinned), (16,), "float32")
    try:
        content[...] = np.arange(16)
        cuda.record(start, stream)
        cuda.copy(int(device), int(pinned), 64, stream)
        cuda.record(end, stream)
        cuda.synchronize(stream)
        assert cuda.seconds_between(start, end) == pytest.approx(0.001)
        assert cuda.free_memory() >= 0
        content[...] = 0
        fetching = cuda.capture(stream, lambda: cuda.copy(int(pinned), int(device), 64, stream, to_host=True))
        assert not content.any()
        cuda.launch(fetching, stream)
        cuda.synchronize(stream)
        fetching.close()
        np.testing.assert_array_equal(content, np.arange(16))
    finally:
        with suppress(JobError):
            cuda.synchronize(stream)
        for handle in (device, pinned, start, end, stream):
            handle.close()


def test_everything_works_and_is_freed() -> None:
    fake = FakeCuda()
    use_everything(Cuda(fake))
    assert (fake.leaks(), fake.violations) == ([], [])


@pytest.mark.parametrize("name", [name for name in calls_of(FakeCuda()) if name != "cudaGetErrorString"])
def test_no_error_code_is_overlooked(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Calls that make or run something raise; calls that free something cannot, and log."""
    fake = FakeCuda()
    frees = "Free" in name or "Destroy" in name
    fake.fail(name)
    if frees:
        with caplog.at_level(logging.WARNING):
            use_everything(Cuda(fake))
        assert f"{name} failed: cudaErrorUnknown" in caplog.text
    else:
        with pytest.raises((JobError, RequestError), match=r"cudaErrorUnknown"):
            use_everything(Cuda(fake))
        gc.collect()
        assert fake.leaks() == []


def test_handles_free_once() -> None:
    freed: list[int] = []
    handle = Handle(7, lambda: freed.append(7))
    handle.close()
    handle.close()
    del handle
    assert freed == [7]
    Handle(8, lambda: freed.append(8))
    assert freed == [7, 8], "the last reference frees, too"


# --- buffers and graphs ---------------------------------------------------------------------------


def test_buffers_grow_and_stay() -> None:
    fake = FakeCuda()
    buffers = Buffers(Cuda(fake).allocate)
    first, second = buffers.take("image", 100), buffers.take("image", 100)
    assert first != second, "what was taken is not given again in the same round"
    for size in (100, 40):
        buffers.rewind()
        assert (buffers.take("image", size), buffers.take("image", size)) == (first, second)
    assert (buffers.generation, fake.used()) == (0, 200)
    buffers.rewind()
    assert buffers.take("image", 300) != first
    assert (buffers.generation, fake.used()) == (1, 400)
    waited: list[bool] = []
    shared = buffers.share("scratch", 10, lambda: waited.append(True))
    assert buffers.share("scratch", 8, lambda: waited.append(True)) == shared
    assert not waited
    buffers.share("scratch", 20, lambda: waited.append(True))
    assert waited == [True]
    buffers.release()
    assert (fake.leaks(), fake.violations) == ([], [])


def test_buffer_that_cannot_grow_is_not_counted_on() -> None:
    fake = FakeCuda(memory=100)
    buffers = Buffers(Cuda(fake).allocate)
    buffers.take("image", 60)
    buffers.rewind()
    with pytest.raises(OutOfMemory):
        buffers.take("image", 200)
    buffers.rewind()
    assert fake.block(buffers.take("image", 50), 50, "device").live
    buffers.release()
    assert (fake.leaks(), fake.violations) == ([], [])


class CopyingContext:
    """Stands in for an execution context: queues a copy."""

    def __init__(self, cuda: Cuda, stream: Handle, device: Handle, pinned: Handle) -> None:
        self.enqueue = partial(cuda.copy, int(device), int(pinned), 8, stream)

    def require_capturable(self) -> None: ...


def test_least_recently_used_graph_leaves() -> None:
    fake = FakeCuda()
    cuda = Cuda(fake)
    stream, device, pinned = cuda.make_stream(), cuda.allocate(8), cuda.allocate_pinned(8)
    graphs = GraphCache(cuda, stream, most=2)

    def run(key: str, generation: int = 0) -> str:
        if graphs.launch(key, generation):
            return "launched"
        context: Any = graphs.context_for(key, lambda: CopyingContext(cuda, stream, device, pinned))  # type: ignore[arg-type,return-value]
        if context is None:
            return "ran"
        context.enqueue()
        graphs.capture(key, context)
        return "captured"

    def runs(keys: str) -> str:
        return "".join(run(key)[0] for key in keys)

    assert runs("aabbab") == "rcrcll"
    assert runs("xyzab") == "rrrll", "what comes once drives out no graph"
    assert runs("acc") == "lrc", "b leaves, which was used before a"
    assert runs("acb") == "llr"
    assert runs("xxyyzz") == "rcrcrc"
    assert run("z", generation=1) == "ran"
    assert fake.calls["cudaGraphExecDestroy"] == fake.calls["cudaGraphInstantiate"] == 6
    cuda.synchronize(stream)
    for handle in (device, pinned, stream):
        handle.close()
    assert (fake.leaks(), fake.violations) == ([], [])


def test_want_of_memory_frees_the_lanes_that_nobody_uses() -> None:
    fake = FakeCuda()
    lanes = LanePool(Cuda(fake))
    with lanes.lane(Clock()) as first, lanes.lane(Clock()) as second:
        for lane in (first, second):
            lane.upload("image", np.ones(100, np.uint8))
    assert fake.used() == 200
    with pytest.raises(OutOfMemory), lanes.lane(Clock()):
        raise OutOfMemory("no room")
    assert (fake.leaks(), fake.violations) == ([], [])


# --- TensorRT -------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", COMPILED_FLAVOURS)
def test_missing_package_names_the_extra(flavour: CompiledFlavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, FLAVOURS[flavour].package, None)
    with pytest.raises(RequestError, match=rf"engine {flavour} needs .*s3diff-export\[{flavour}\]'"):
        TensorRt(flavour)


def test_importing_makes_no_object_of_tensorrt() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    assert TensorRt("tensorrt-rtx").version == module.__version__


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("OutOfMemory (Requested size was 5 bytes.)", OutOfMemory),
        ("[defaultAllocator.cpp] Cuda failure: out of memory", OutOfMemory),
        ("Requested amount of GPU memory (9 bytes) could not be allocated. There may not be", OutOfMemory),
        ("Error Code 2: OutOfMemory (no further information)", OutOfMemory),
        ("Error Code 1: Cuda Runtime (out of memory)", OutOfMemory),
        ("The allocation strategy of the context is not supported", JobError),
        ("cudaMallocAsync is not there; insufficient workspace memory for tactic 3", JobError),
        ("Engine deserialization failed: version tag", JobError),
        ("", JobError),
    ],
)
def test_failures_carry_the_log(message: str, kind: type[JobError], monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install_fakes(monkeypatch, FakeCuda())
    api, severity = TensorRt("tensorrt"), fake_tensorrt.Severity
    api.logger.log(severity.INFO, "chatter")
    if message:
        api.logger.log(severity.WARNING, "out of memory, nearly")
        api.logger.log(severity.ERROR, message)
    with pytest.raises(JobError) as failure:
        raise api.failure("loading")
    assert str(failure.value).endswith(f"failed loading: {message or 'TensorRT gave no reason'}")
    assert type(failure.value) is kind
    assert str(api.failure("loading")).endswith("TensorRT gave no reason"), "reasons are told once"


def test_what_was_said_before_a_call_explains_nothing_of_its_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_tensorrt.install_fakes(monkeypatch, FakeCuda())
    api = TensorRt("tensorrt")

    def succeed(value: int) -> int:
        api.logger.log(fake_tensorrt.Severity.ERROR, "out of memory, but the call went on without")
        return value

    assert api.ask("counting", succeed, 0) == 0, "zero is an answer"
    for refusal in (None, False):
        with pytest.raises(JobError, match="failed loading: TensorRT gave no reason") as failure:
            api.ask("loading", lambda answer=refusal: answer)
        assert type(failure.value) is JobError


def test_failures_of_other_threads_explain_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT has one logger a process, and many threads may fail."""
    fake_tensorrt.install_fakes(monkeypatch, FakeCuda())
    api, severity = TensorRt("tensorrt"), fake_tensorrt.Severity
    assert TensorRt("tensorrt").logger is api.logger
    api.logger.log(severity.WARNING, "a warning, which explains where there is no error")
    with ThreadPoolExecutor(1) as other:
        other.submit(api.logger.log, severity.ERROR, "out of memory").result()
        assert other.submit(api.messages.reason).result() == "out of memory"
    failure = api.failure("loading")
    assert str(failure).endswith("failed loading: a warning, which explains where there is no error")
    assert type(failure) is JobError


def test_unknown_dtypes_keep_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install_fakes(monkeypatch, FakeCuda())
    engine = SimpleNamespace(
        num_io_tensors=1,
        get_tensor_name=lambda index: "x",
        get_tensor_dtype=lambda name: SimpleNamespace(name="BF16"),
        get_tensor_mode=lambda name: fake_tensorrt.TensorIOMode.OUTPUT,
    )
    (tensor,) = TensorRt("tensorrt").tensors(engine)
    assert (tensor.name, tensor.dtype, tensor.is_input) == ("x", "BF16", False)
