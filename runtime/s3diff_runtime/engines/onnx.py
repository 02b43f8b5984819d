"""The engine `onnx`: ONNX Runtime on the graphs of a bundle, on the CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.failures import failure, line
from s3diff_runtime.engines.flavours import FlavourTraits
from s3diff_runtime.engines.interface import Session, Value, tensor_problem
from s3diff_runtime.engines.lanes import Lanes
from s3diff_runtime.engines.onnx_cuda import CudaSession, CudaSide
from s3diff_runtime.errors import BundleError, RequestError

if TYPE_CHECKING:
    import onnxruntime


_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ORT_TYPES = {
    "uint8": "tensor(uint8)",
    "int64": "tensor(int64)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
}


def open_engine(
    bundle: Bundle, flavour: FlavourTraits, device: str, cpu: CpuOptions
) -> tuple[OnnxEngine, None]:
    """Open ONNX Runtime, which runs the graphs of any bundle. Raises `RequestError`, see `OnnxEngine`."""
    return OnnxEngine(device, cpu.threads, exact=bundle.manifest.precision == "fp32"), None


class OnnxEngine:
    """ONNX Runtime on the CPU or on a CUDA device; never on another one than asked for.

    Args:
        device: `cpu`, `cuda`, or `cuda:N` for the GPU of that number.
        threads: that work on one operator; None takes the machine's cores. For the CPU.
        exact: whether float32 is computed as such on CUDA; else in TF32, as the matrix units have it.

    Raises:
        RequestError: for an unknown device, or one that the installed ONNX Runtime does not serve.
    """

    name = "onnx"
    precision: str | None = None

    def __init__(self, device: str = "cpu", threads: int | None = None, exact: bool = True) -> None:
        self._kind, self._index = Device.parse(device)
        self.device = device
        self._provider = _PROVIDERS[self._kind]
        self._ort = _import_onnxruntime()
        self._require(self._ort.get_available_providers(), "install s3diff-export[gpu] in place of [cpu]")
        self._cuda = CudaSide(self._ort, self._index, exact) if self._kind == "cuda" else None
        self._options = self._session_options(threads)
        # One at a time on CUDA, where tensors of a second chain would lie where those of the first do.
        self.lane = (Lanes(1, self._cuda.upload) if self._cuda else Lanes()).lane

    def open(self, graph: Path, stage: Stage) -> Session:
        """See `Engine.open`."""
        try:
            if self._cuda:
                session, captures = self._cuda.load(graph, self._options)
            else:
                session = self._ort.InferenceSession(str(graph), self._options, providers=[self._provider])
        except Exception as error:  # the exceptions of ONNX Runtime have no base of their own
            raise BundleError(
                f"ONNX Runtime {self._ort.__version__} cannot load {graph} ({line(error)}); "
                "update ONNX Runtime, or rebuild the bundle with s3diff-export build"
            ) from error
        self._require(
            session.get_providers(), "check that nvidia-smi lists the GPU and that CUDA and cuDNN load"
        )
        for side, tensors, specs in (
            ("inputs", session.get_inputs(), stage.inputs),
            ("outputs", session.get_outputs(), stage.outputs),
        ):
            has = (f"{tensor.name} {tensor.type}" for tensor in tensors)
            problem = tensor_problem(side, has, (f"{spec.name} {_ORT_TYPES[spec.dtype]}" for spec in specs))
            if problem:
                raise BundleError(f"{graph} {problem}; rebuild the bundle with s3diff-export build")
        if self._cuda:
            return CudaSession(self._cuda, session, graph.name.partition(".")[0], captures)
        return OnnxSession(session, graph.stem)

    def _require(self, providers: list[str], remedy: str) -> None:
        """ONNX Runtime falls back to the CPU without an error; refuse that."""
        if self._provider not in providers:
            raise RequestError(
                f"device {self.device} was asked for, but ONNX Runtime {self._ort.__version__} offers only "
                f"{', '.join(providers)} here; {remedy}, or use device cpu"
            )

    def _session_options(self, threads: int | None) -> onnxruntime.SessionOptions:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3  # errors; warnings about graph nodes help no user
        # Every session has its own threads: those of one must not spin while the next one works.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # One arena for all sessions holds the largest need of a stage, not the sum of all.
        _share_cpu_arena(self._ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        return options


class OnnxSession:
    """A graph in ONNX Runtime on the CPU."""

    def __init__(self, session: onnxruntime.InferenceSession, stage: str) -> None:
        self._session, self._stage = session, stage
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """See `Session.run`."""
        try:
            binding = self._session.io_binding()
            for name, value in inputs.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, np.asarray(value, order="C"))
                else:
                    binding.bind_ortvalue_input(name, value)
            for name in self._outputs:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            return dict(zip(self._outputs, binding.get_outputs(), strict=True))
        except Exception as error:  # the exceptions of ONNX Runtime have no base of their own
            raise failure(f"stage {self._stage} failed on cpu", error) from error


def _import_onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise RequestError(
            "ONNX Runtime is not installed: pip install 's3diff-export[cpu]', or [gpu] for CUDA"
        ) from error
    return onnxruntime


@cache
def _share_cpu_arena(ort: ModuleType) -> None:
    """Give the process one allocator, which the sessions use that ask for it, and which lives as long."""
    kind, memory = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, ort.OrtMemType.DEFAULT
    ort.create_and_register_allocator(ort.OrtMemoryInfo("Cpu", kind, 0, memory), None)
