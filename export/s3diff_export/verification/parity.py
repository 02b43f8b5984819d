"""Compares a bundle's stages with PyTorch's results and decides whether the bundle may be published."""

import math
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import onnxruntime

from s3diff_export.verification.chain import Chain, run_chains, run_stage
from s3diff_export.verification.reference import Array, Reference
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.interface import Engine, Session
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.options import Options, option
from s3diff_runtime.progress import Steps
from s3diff_runtime.stages import STAGES
from s3diff_runtime.vocabulary import Precision


@dataclass(frozen=True)
class Limits:
    """The largest errors that a bundle may have."""

    epsilon: float
    """Norm of the error of what the UNet predicts (ε, of every prompt) over its norm."""
    psnr: float
    """Lowest PSNR of the final image against PyTorch's, in dB."""
    stage: float
    """Relative error of any other stage on PyTorch's own inputs."""


_NOTHING = np.zeros((1, 0), np.float32)  # the degradation, for families that read none
LIMITS: dict[str, Limits] = {
    "fp32": Limits(1e-4, 60.0, 1e-3),
    "fp16": Limits(5e-3, 40.0, 3e-2),
    "bf16": Limits(4e-2, 40.0, 6e-2),
}
"""By what a bundle computes in, or the engine that runs it. bf16 rounds eight times as coarsely as fp16 and
has eight times its limit of ε. Pictures have fp16's: they are bytes, of which 40 dB alters few by much."""


def _gate(name: str, help: str) -> Any:  # noqa: ANN401 - takes a field's place
    usual = ", ".join(f"{precision}: {getattr(limits, name):g}" for precision, limits in LIMITS.items())
    return option(None, help, flags=(f"--gate-{name}",), above=0, shown=usual)


@dataclass(frozen=True)
class Gates(Options):
    """Limits in the place of the precision's own, which None takes."""

    epsilon: float | None = _gate("epsilon", "Largest relative error of ε, of either prompt.")
    psnr: float | None = _gate("psnr", "Lowest PSNR of the final image, dB.")
    stage: float | None = _gate("stage", "Largest relative error of any other stage.")

    def limits(self, bundle: Precision, engine: str | None = None) -> Limits:
        """These, with the precision's own in the place of None.

        Args:
            bundle: its precision.
            engine: what the engine computes in, see `Engine.precision`; f32 is no coarser than any bundle.
        """
        set_here = {name: limit for name, limit in asdict(self).items() if limit is not None}
        return replace(LIMITS.get(engine or bundle, LIMITS[bundle]), **set_here)


@dataclass(frozen=True)
class Parity:
    """The worst errors of one quantity over all cases, each stage fed with PyTorch's own inputs."""

    quantity: str
    relative: float
    """Norm of the error over the norm of the truth."""
    largest: float
    mean: float
    limit: float
    cases: int

    @property
    def passed(self) -> bool:
        """Whether the relative error keeps within the limit."""
        return self.relative <= self.limit


@dataclass(frozen=True)
class ParityReport:
    """How a bundle compares with PyTorch in fp32. True when every gate holds."""

    quantities: tuple[Parity, ...]
    """In the order of the stages."""
    psnr: dict[str, float | None]
    """Lowest PSNR of the final image by colour correction, end to end; None where all images are equal."""
    gates: Limits
    cases: int
    machine: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.broken is None

    @property
    def broken(self) -> str | None:
        """What broke first, in the order of the stages, in words."""
        for parity in self.quantities:
            if not parity.passed:
                return f"{parity.quantity}: relative error {parity.relative:.2e}, limit {parity.limit:.0e}"
        for fix, value in self.psnr.items():
            if value is not None and value < self.gates.psnr:
                return f"final image ({fix}): PSNR {value:.1f} dB, limit {self.gates.psnr:.0f} dB"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, as it stands in the manifest."""
        return {**asdict(self), "passed": bool(self), "broken": self.broken}


def verify(
    bundle: Bundle,
    references: Sequence[Reference],
    gates: Gates,
    progress: Steps = lambda _: None,
    engine: Engine | None = None,
) -> ParityReport:
    """Run every stage on PyTorch's inputs, and the chain of all stages from picture to picture.

    Args:
        bundle: with the engines that `engine` runs, if it runs any.
        references: PyTorch's results; for bundles with bins, one or more of every bin.
        gates: limits.
        progress: told of each stage.
        engine: to run on; None is ONNX Runtime on the CPU.

    Raises:
        BuildError: when a stage's output is not finite, all equal or saturated; names stage and case.
    """
    manifest, engine = bundle.manifest, engine or OnnxEngine()
    limits = gates.limits(manifest.precision, engine.precision)
    errors: dict[str, list[tuple[float, float, float]]] = defaultdict(list)

    def compare(stage: str, session: Session, number: int) -> None:
        reference = references[number]
        for quantity, found in _quantities(manifest, stage, session, reference):
            errors[quantity].append(errors_of(found, reference.tensors[quantity]))

    chains = run_chains(
        bundle,
        [reference.case for reference in references],
        engine,
        lambda stage: progress(f"verifying {stage}"),
        compare,
    )
    predictions = {name for reference in references for name in reference.probes}
    rows = []
    for quantity, found in errors.items():
        relative, largest, mean = (max(column) for column in zip(*found, strict=True))
        limit = limits.epsilon if quantity in predictions else limits.stage
        rows.append(Parity(quantity, relative, largest, mean, limit, len(found)))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(terse=True),
        "engine": engine.name,
        "precision": engine.precision or manifest.precision,
        "onnxruntime": onnxruntime.__version__,
        "torch": version("torch"),
    }
    return ParityReport(
        tuple(rows), _lowest_psnr(manifest, references, chains), limits, len(references), machine
    )


def errors_of(found: Array, truth: Array) -> tuple[float, float, float]:
    """Relative, largest and mean absolute error, in float64; not a number counts as infinite."""
    difference = np.abs(np.float64(found) - np.float64(truth))
    norm = float(np.linalg.norm(np.float64(truth)))
    relative = float(np.linalg.norm(difference)) / max(norm, 1e-30)
    values = (relative, float(difference.max()), float(difference.mean()))
    return values if np.isfinite(values).all() else (math.inf, math.inf, math.inf)


def _quantities(
    manifest: Manifest, stage: str, session: Session, reference: Reference
) -> Iterator[tuple[str, Array]]:
    """What a stage makes of PyTorch's inputs, by the names of `Reference.tensors`.

    Pictures are left out, and the contrast, which the network in PyTorch does not measure.

    What the UNet predicts is found by the probes that the reference brings.
    """
    kind = STAGES[stage]
    if kind.color_fix is not None:
        return
    given = {**reference.tensors, "degradation": reference.tensors.get("applied", _NOTHING)}
    if "x0" in kind.gives:
        for quantity, inputs in reference.probes.items():
            probed = {name: np.asarray(value, np.float32) for name, value in inputs.items()}
            x0 = run_stage(manifest, stage, session, {**given, **probed})["x0"]
            yield quantity, reference.prediction_of(x0)
    outputs = run_stage(manifest, stage, session, given)
    yield from ((name, value) for name, value in outputs.items() if name != "contrast")


def _lowest_psnr(
    manifest: Manifest, references: Sequence[Reference], chains: Sequence[Chain]
) -> dict[str, float | None]:
    lowest: dict[str, float | None] = {}
    for fix in manifest.color_fixes:
        name = f"upscaled_{fix}"
        squares = [
            float(np.mean((np.float64(chain.tensors[name]) - np.float64(reference.tensors[name])) ** 2))
            for reference, chain in zip(references, chains, strict=True)
        ]
        lowest[fix] = 10 * math.log10(255**2 / max(squares)) if max(squares) else None
    return lowest
