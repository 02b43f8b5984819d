"""What the machine could do at best, measured in the same run: a large matrix product, and a large copy."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray

from s3diff_benchmarks.report.layouts import table
from s3diff_benchmarks.report.model import CEILINGS, Table
from s3diff_benchmarks.statistics import Summary, sample_interleaved
from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import Lane
from s3diff_runtime.engines.onnx import OnnxEngine

_GPU_SIDE, _CPU_SIDE = 8192, 1536
_GPU_ELEMENTS, _CPU_ELEMENTS = 2**29, 2**26
_VERSIONS = 'ir_version: 10, opset_import: ["" : 18]'
"""Of the graphs, in ONNX's text."""


@dataclass(frozen=True)
class Ceilings:
    """The best that was measured."""

    flops: float
    """FLOP/s of a square product in `precision`; a multiplication with its addition is 2."""
    bandwidth: float
    """Bytes/s of a copy, read and written both counted."""
    precision: str
    device: str

    def at(self, intensity: float) -> float:
        """The most FLOP/s that can be had at so many FLOP for each byte moved (Williams et al. 2009)."""
        return min(self.flops, intensity * self.bandwidth)

    def table(self) -> Table:
        """For a report."""
        rows = (
            ("matrix product", self.precision, self.device, self.flops / 1e12, "TFLOP/s"),
            ("copy", self.precision, self.device, self.bandwidth / 1e9, "GB/s"),
        )
        return table(CEILINGS, rows)


def measure_ceilings(device: str, precision: str, threads: int | None, seconds: float) -> Ceilings:
    """Multiply large matrices and copy a large array on a device, with ONNX Runtime.

    `precision` is `fp32` or `fp16`, of the graphs that are compared; on a CPU, whose kernels compute fp16 in
    fp32, always fp32. `threads` are the CPU's, None takes its cores, and it all takes about `seconds`.

    Raises:
        RequestError: when ONNX Runtime does not serve the device.
    """
    on_gpu = device != "cpu"
    dtype = np.dtype(np.float16 if on_gpu and precision == "fp16" else np.float32)
    side, elements = (_GPU_SIDE, _GPU_ELEMENTS) if on_gpu else (_CPU_SIDE, _CPU_ELEMENTS)
    square = np.random.default_rng(0).standard_normal((side, side), np.float32).astype(dtype)
    engine = OnnxEngine(device, threads)
    operands = {"MatMul (x, x)": square, "Identity (x)": np.resize(square, elements)}
    with TemporaryDirectory() as folder, engine.lane(Clock()) as lane:
        samples = sample_interleaved(
            {node: _runner(engine, lane, node, x, Path(folder)) for node, x in operands.items()},
            warm_up=2,
            least=5,
            tolerance=0.02,
            seconds=seconds,
            seed=0,
        )
    product, copied = (Summary.of(samples[node]).median for node in operands)
    return Ceilings(
        flops=2 * side**3 / product,
        bandwidth=2 * elements * dtype.itemsize / copied,
        precision="fp16" if dtype == np.float16 else "fp32",
        device=device,
    )


def _runner(engine: OnnxEngine, lane: Lane, node: str, x: NDArray[Any], folder: Path) -> Callable[[], float]:
    """A call that runs an operator once, its operand `x` on the device, and returns the seconds."""
    name: Literal["float16", "float32"] = "float16" if x.dtype == np.float16 else "float32"
    typed = f"{name.removesuffix('32')}[{','.join(map(str, x.shape))}]"  # ONNX calls float32 float
    graph = f"<{_VERSIONS}> ceiling ({typed} x) => ({typed} y) {{ y = {node} }}"
    path = folder / f"{node.split()[0]}.onnx"
    onnx.save(onnx.parser.parse_model(graph), path)
    given, result = (TensorSpec(name=each, dtype=name, shape=x.shape) for each in ("x", "y"))
    session = engine.open(path, Stage(inputs=(given,), outputs=(result,), graphs={}))
    operand = lane.upload("x", x)

    def run() -> float:
        start = perf_counter()
        session.run({"x": operand})
        return perf_counter() - start

    return run
