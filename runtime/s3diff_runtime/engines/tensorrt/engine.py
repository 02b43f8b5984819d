"""The engine of TensorRT and TensorRT-RTX: finds engines of a bundle that fit the machine, and loads them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from s3diff_runtime.bundle.engine_records import EngineIdentity, EngineSet, EngineSidecar, sidecar_path
from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.flavours import FlavourTraits
from s3diff_runtime.engines.interface import tensor_problem
from s3diff_runtime.engines.tensorrt.api import TensorRt, version_numbers
from s3diff_runtime.engines.tensorrt.cuda import Cuda, Gpu, load_runtime
from s3diff_runtime.engines.tensorrt.kernels import KernelCache, kernels_file
from s3diff_runtime.engines.tensorrt.lanes import Lane, LanePool
from s3diff_runtime.engines.tensorrt.session import TensorRtSession
from s3diff_runtime.errors import BundleError, JobError, OutOfMemory, RequestError, wrong_fields

_AMPERE = (8, 0)


def open_engine(
    bundle: Bundle, flavour: FlavourTraits, device: str, cpu: CpuOptions
) -> tuple["TensorRtEngine", EngineSet]:
    """Open the first set of engines of a flavour that this machine can load.

    The GPU is looked at before TensorRT is: without one, TensorRT ends the process.

    Raises:
        RequestError: when there is no such set: of each what was expected and what was found, and the command
            that builds engines for this machine.
    """
    everything = bundle.manifest.engines
    sets = [engines for engines in everything if engines.identity.flavour == flavour.name]
    build = f"s3diff-export engines {bundle.folder} {flavour.built_with}"
    if not sets:
        only = f" (only {', '.join(engines.name for engines in everything)})" if everything else ""
        raise RequestError(
            f"{bundle.folder} has no engines for {flavour.name}{only}; build some with {build}"
        )
    cuda = Cuda(load_runtime(), Device.parse(device).number)
    api = TensorRt(sets[0].identity.flavour)
    problems: list[str] = []
    for engines in sets:
        misfit = ", ".join(_mismatches(engines.identity, cuda.gpu, api))
        if not misfit:
            return TensorRtEngine(bundle, engines, api, cuda, build), engines
        problems.append(f"{engines.name}: {misfit}")
    raise RequestError(
        f"no engines of {bundle.folder} fit this machine ({'; '.join(problems)}); "
        f"build engines for it with {build}"
    )


def _mismatches(identity: EngineIdentity, gpu: Gpu, api: TensorRt) -> Iterator[str]:
    """Everything that keeps an engine from being loaded by a GPU and the TensorRT of its flavour."""
    if api.flavour.runs_older:
        if version_numbers(api.version) < version_numbers(identity.version):
            yield f"expected {identity.flavour} {identity.version} or later, found {api.version}"
    elif api.version != identity.version:
        yield f"expected {identity.flavour} {identity.version}, found {api.version}"
    if identity.hardware_compatibility == "ampere_plus":
        if version_numbers(gpu.compute_capability) < _AMPERE:
            yield f"expected compute capability 8.0 or later, found {gpu.compute_capability} ({gpu.name})"
    elif gpu.compute_capability not in identity.targets:
        wanted = " or ".join(identity.targets)
        yield f"expected compute capability {wanted}, found {gpu.compute_capability} ({gpu.name})"
    elif identity.hardware_compatibility == "none" and identity.gpu not in (None, gpu.name):
        yield f"expected the GPU {identity.gpu}, found {gpu.name}"
    if identity.driver is not None and version_numbers(gpu.driver) < version_numbers(identity.driver):
        yield f"expected a driver for CUDA {identity.driver} or later, found one for {gpu.driver}"


class TensorRtEngine:
    """Opens the engines of one set of a bundle on one GPU; that they fit it and TensorRT was checked.

    `build` is the command that builds others.
    """

    precision: str | None = None

    def __init__(self, bundle: Bundle, engines: EngineSet, api: TensorRt, cuda: Cuda, build: str) -> None:
        self.name: str = engines.identity.flavour
        self.device = f"cuda:{cuda.gpu.index}"
        self._bundle, self._engines, self._api, self._cuda = bundle, engines, api, cuda
        self._lanes = LanePool(cuda)
        if api.flavour.compiles_on_device:
            with suppress(JobError):  # without a place they are compiled anew
                api.kernels = KernelCache(kernels_file(engines.name, cuda.gpu.name))
        self._rebuild = f"build engines on this machine with {build}"

    @contextmanager
    def lane(self, clock: Clock) -> Iterator[Lane]:
        """See `Engine.lane`, and `LanePool.lane`."""
        with self._lanes.lane(clock) as lane:
            yield lane
        if self._api.kernels is not None:
            self._api.kernels.save()

    def open(self, graph: Path, stage: Stage) -> TensorRtSession:
        """Load an engine: `graph` is the path of its `.engine`, which lies in the bundle.

        The very bytes that are loaded are hashed first, whatever was checked before: a plan is executable.

        Raises:
            BundleError: when the engine or its sidecar is not what the manifest says.
            OutOfMemory: when the GPU has no room for it.
        """
        name = graph.relative_to(self._bundle.folder).as_posix()
        sidecar = self._sidecar(name)
        at = self._engines.graphs.get(sidecar.stage, {}).get(sidecar.graph)
        for expected, holds in (
            ("was built as its manifest says", sidecar.identity == self._engines.identity),
            (f"is {sidecar.graph} of stage {sidecar.stage}", at == name),
            ("is what was built", sidecar.sha256 == self._bundle.manifest.files[name].sha256),
            (f"has the inputs {_named(stage.inputs)}", sidecar.inputs == stage.inputs),
            (f"has the outputs {_named(stage.outputs)}", sidecar.outputs == stage.outputs),
        ):
            if not holds:
                raise BundleError(
                    f"engine {name} does not agree with its sidecar: expected that it {expected}; "
                    f"{self._rebuild}"
                )
        self._cuda.activate()
        try:
            engine = self._api.deserialize(self._bundle.read(name))
        except OutOfMemory:
            raise
        except JobError as error:
            raise BundleError(f"{name}: {error}; {self._rebuild}") from error
        session = TensorRtSession(self._api, engine, self._cuda, self._lanes, sidecar.stage)
        for side, tensors, specs in (
            ("inputs", session.inputs, stage.inputs),
            ("outputs", session.outputs, stage.outputs),
        ):
            has, wanted = ([f"{each.name} {each.dtype}" for each in part] for part in (tensors, specs))
            problem = tensor_problem(side, sorted(has), sorted(wanted))
            if problem:
                raise BundleError(f"engine {name} {problem}; {self._rebuild}")
        return session

    def _sidecar(self, name: str) -> EngineSidecar:
        path = sidecar_path(name)
        try:
            return EngineSidecar.model_validate_json(self._bundle.read(path))
        except ValidationError as error:
            wrong = "; ".join(wrong_fields(error))
            raise BundleError(f"{path} does not describe an engine ({wrong}); {self._rebuild}") from error


def _named(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
