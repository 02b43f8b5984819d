"""Builds one engine: parse, profile, build, with progress and an end at any step."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s3diff_export.engines.api import (
    TimingCache,
    compute_capabilities,
    configuration,
    require_version,
    typed_network,
)
from s3diff_export.engines.options import EngineOptions
from s3diff_runtime.bundle.engine_records import Shapes
from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.engines.flavours import BUILDER_FLAVOURS, FLAVOURS, BuilderFlavour
from s3diff_runtime.engines.interface import tensor_problem
from s3diff_runtime.engines.tensorrt.api import TensorRt, dtype_name
from s3diff_runtime.engines.tensorrt.cuda import Cuda, Gpu, load_runtime
from s3diff_runtime.engines.tensorrt.messages import join_reasons
from s3diff_runtime.errors import BuildError, RequestError, S3DiffError
from s3diff_runtime.memory import process_memory
from s3diff_runtime.progress import Steps
from s3diff_runtime.vocabulary import Precision

_POLL = 0.1  # seconds


@dataclass(frozen=True)
class EngineSource:
    """What an engine is built from: a graph with its weights beside it, and the shapes of all its inputs.

    Sets of shapes in `exact` get profiles of their own, before the one for all of `shapes`.
    """

    graph: Path
    stage: Stage
    shapes: Mapping[str, Shapes]
    name: str
    """How progress and errors call it."""
    precision: Precision
    """Of the bundle."""
    exact: tuple[Mapping[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class BuildCost:
    """What the build of an engine took."""

    seconds: float
    parse_seconds: float
    """The part of `seconds` that reading the graph took."""
    peak_memory: int
    """Bytes of host memory that the process held at most meanwhile, sampled."""


@dataclass(frozen=True)
class EngineBuilder:
    """Builds engines with one set of options, tuned on a GPU unless the flavour needs none."""

    tensorrt: TensorRt
    gpu: Gpu | None
    options: EngineOptions
    timings: TimingCache = field(compare=False)

    def build(self, source: EngineSource, path: Path, progress: Steps = lambda _: None) -> BuildCost:
        """Build the engine of one graph and write its plan to `path`.

        TensorRT works in a thread of its own, so that an exception in this one, an interruption above all,
        stops it at its next step; the call returns only when it has stopped. `progress` is told of the phases
        and percentages of the build.

        Raises:
            BuildError: when TensorRT refuses, with what it says, the node if it names one, and what to try.
            RequestError: when the timing cache does not fit.
        """
        start = time.monotonic()
        monitor = BuildMonitor(self.tensorrt.module)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="tensorrt") as pool:
            work = pool.submit(self._build, source, path, monitor)
            try:
                peak = _follow(work, monitor, source.name, progress)
            except BaseException:
                monitor.cancelled.set()
                raise
        return BuildCost(time.monotonic() - start, work.result(), peak)

    def _build(self, source: EngineSource, path: Path, monitor: "BuildMonitor") -> float:
        """All that happens in TensorRT's thread; the seconds that reading the graph took."""
        tensorrt, start = self.tensorrt, time.monotonic()
        tensorrt.messages.clear()
        builder = tensorrt.module.Builder(tensorrt.logger)
        network = typed_network(tensorrt, builder)
        self._parse(network, source)
        _compare(network, source)
        parsed = time.monotonic() - start
        tensorrt.messages.clear()
        config = configuration(tensorrt, builder, self.options, source.precision, self.timings)
        self._add_profiles(builder, config, source)
        config.progress_monitor = monitor.of_tensorrt
        tensorrt.messages.clear()
        plan = builder.build_serialized_network(network, config)
        if monitor.cancelled.is_set():
            return parsed  # nobody waits for the result
        if plan is None:
            raise self._failure(source)
        with path.open("wb") as file:
            file.write(memoryview(plan))
        if "timing_cache" not in tensorrt.flavour.lacks:
            self.timings.take_back(config)
        return parsed

    def _parse(self, network: Any, source: EngineSource) -> None:  # noqa: ANN401
        parser = self.tensorrt.module.OnnxParser(network, self.tensorrt.logger)
        if parser.parse_from_file(str(source.graph)):
            return
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        nodes = dict.fromkeys(
            f"{error.node_name()} ({error.node_operator()})" for error in errors if error.node_name()
        )
        where = f" at node {', '.join(nodes)}" if nodes else ""
        raise BuildError(
            f"{self.tensorrt} cannot read the graph of stage {source.name}{where}: "
            f"{join_reasons([error.desc() for error in errors])}; check the bundle with s3diff-export "
            "inspect BUNDLE --check, or update TensorRT"
        )

    def _add_profiles(self, builder: Any, config: Any, source: EngineSource) -> None:  # noqa: ANN401
        inputs = source.stage.inputs
        free = [spec.name for spec in inputs if any(isinstance(axis, str) for axis in spec.shape)]
        exact = [{name: (shape,) * 3 for name, shape in shapes.items()} for shapes in source.exact]
        for number, shapes in enumerate([*exact, source.shapes] if free else []):
            profile = builder.create_optimization_profile()
            for tensor in free:
                profile.set_shape(tensor, *shapes[tensor])
            if config.add_optimization_profile(profile) != number:
                raise self._failure(source)

    def _failure(self, source: EngineSource) -> BuildError:
        return BuildError(
            f"{self.tensorrt} could not build stage {source.name}: {self.tensorrt.messages.reason()}; try a "
            "larger --workspace-mib, a smaller --max-size or --max-batch, or free memory on the device and "
            "the host"
        )


def require_builder(options: EngineOptions) -> EngineBuilder:
    """Find what builds the engines here; makes no object of TensorRT.

    Raises:
        RequestError: when the package is missing or too old, there is no GPU for a flavour that needs one,
            the flavour knows no such target, or the timing cache cannot be read.
    """
    if options.flavour is None:
        raise RequestError(f"no engine was chosen; pass --engine {' or '.join(BUILDER_FLAVOURS)}")
    tensorrt = TensorRt(options.flavour)
    gpu = None if options.targets else _find_gpu(options.flavour)
    require_version(tensorrt)
    if options.targets:
        compute_capabilities(tensorrt, options.targets)
    return EngineBuilder(tensorrt, gpu, options, TimingCache(options.timing_cache))


def _find_gpu(flavour: BuilderFlavour) -> Gpu:
    """The GPU that TensorRT builds for: the first. Without one its library would end the process."""
    try:
        return Cuda(load_runtime()).gpu
    except S3DiffError as error:
        others = " or ".join(name for name in BUILDER_FLAVOURS if FLAVOURS[name].targets)
        raise RequestError(
            f"--engine {flavour} builds on the GPU that is to run the engines: {error}; "
            f"--engine {others} builds without one, for RTX cards"
        ) from error


class BuildMonitor:
    """Follows a build through its phases, and can end it."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        self.cancelled = threading.Event()
        self._phases: dict[str, _Phase] = {}
        build = self

        class Monitor(module.IProgressMonitor):
            def __init__(self) -> None:
                module.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                build._phases[phase_name] = _Phase(parent_phase, num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                if phase_name in build._phases:
                    build._phases[phase_name].done = step + 1
                return not build.cancelled.is_set()

            def phase_finish(self, phase_name: str) -> None:
                build._phases.pop(phase_name, None)

        self.of_tensorrt = Monitor()

    def __str__(self) -> str:
        """The outermost phase that runs, and how much of it is done."""
        phases = dict(self._phases)
        root = next((name for name, phase in phases.items() if phase.parent is None), None)
        if root is None:
            return "reading the graph"
        innermost = next(reversed(phases))
        return f"{_done(phases, root):.0%}, {innermost.lower()}"


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


def _done(phases: Mapping[str, _Phase], name: str) -> float:
    """The share of a phase that is done, with that of the phase that runs inside it."""
    phase = phases[name]
    inside = max((_done(phases, child) for child in phases if phases[child].parent == name), default=0.0)
    return min(1.0, (phase.done + inside) / max(phase.steps, 1))


def _follow(work: Future[float], monitor: BuildMonitor, name: str, progress: Steps) -> int:
    """Wait for the work and tell how it goes; the most memory that was seen."""
    peak, shown = 0, None
    while not wait_for([work], timeout=_POLL).done:
        peak = max(peak, process_memory("VmRSS"))
        state = f"building {name}: {monitor}"
        if state != shown:
            progress(state)
            shown = state
    work.result()
    return max(peak, process_memory("VmRSS"))


def _compare(network: Any, source: EngineSource) -> None:  # noqa: ANN401
    """What TensorRT read must be what the manifest says: names, types and ranks."""
    for side, specs, count, get in (
        ("inputs", source.stage.inputs, network.num_inputs, network.get_input),
        ("outputs", source.stage.outputs, network.num_outputs, network.get_output),
    ):
        tensors = [get(number) for number in range(count)]
        found = (f"{each.name} {dtype_name(each.dtype)} of rank {len(each.shape)}" for each in tensors)
        expected = (f"{spec.name} {spec.dtype} of rank {len(spec.shape)}" for spec in specs)
        problem = tensor_problem(side, sorted(found), sorted(expected))
        if problem:
            raise BuildError(
                f"the graph of stage {source.name} {problem}; rebuild the bundle with s3diff-export build"
            )
