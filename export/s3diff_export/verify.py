"""Runs a bundle's stages beside PyTorch's results and decides whether the bundle may be published."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from s3diff_export.reference import Array, CheckCase, Reference
from s3diff_runtime.bundle.manifest import SHARED, Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.interface import Engine, Session
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.errors import BuildError, RequestError

_SATURATED = 0.98


@dataclass(frozen=True)
class Gates:
    """The largest errors that a bundle may have. None takes the precision's own limit.

    Raises:
        RequestError: for a limit that is not above 0.
    """

    epsilon: float | None = None
    """Norm of the error of ε over the norm of ε, of every prompt: fp32 1e-4, fp16 5e-3."""
    psnr: float | None = None
    """Of the final image against PyTorch's, in dB: fp32 60, fp16 40."""
    stage: float | None = None
    """Relative error of any other stage on PyTorch's own inputs: fp32 1e-3, fp16 3e-2."""

    def __post_init__(self) -> None:
        """Check every limit."""
        wrong = [
            f"{name} {value}" for name, value in vars(self).items() if value is not None and not value > 0
        ]
        if wrong:
            raise RequestError(f"gates must be above 0: {', '.join(wrong)}")

    def settled(self, precision: str) -> Gates:
        """The same with the precision's limits in the place of None."""
        usual = Gates(1e-4, 60.0, 1e-3) if precision == "fp32" else Gates(5e-3, 40.0, 3e-2)
        return Gates(
            *(
                mine if mine is not None else its
                for mine, its in zip(
                    (self.epsilon, self.psnr, self.stage),
                    (usual.epsilon, usual.psnr, usual.stage),
                    strict=True,
                )
            )
        )


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
    gates: Gates
    cases: int
    machine: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether the bundle may be published."""
        return self.broken is None

    @property
    def broken(self) -> str | None:
        """What broke first, in the order of the stages, in words."""
        for parity in self.quantities:
            if not parity.passed:
                return f"{parity.quantity}: relative error {parity.relative:.2e}, limit {parity.limit:.0e}"
        limit = self.gates.psnr or 0.0
        for fix, value in self.psnr.items():
            if value is not None and value < limit:
                return f"final image ({fix}): PSNR {value:.1f} dB, limit {limit:.0f} dB"
        return None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, as it stands in the manifest."""
        return {**asdict(self), "passed": bool(self), "broken": self.broken}


def verify(
    bundle: Bundle,
    references: Sequence[Reference],
    gates: Gates,
    progress: Callable[[str], None] = lambda _: None,
    engine: Engine | None = None,
) -> ParityReport:
    """Run every stage on PyTorch's inputs, and the chain of all stages from image to image.

    One session is open at a time, so the largest stage bounds the memory.

    Args:
        bundle: with the engines that `engine` runs, if it runs any.
        references: PyTorch's results; for merged bundles, one or more of every bin.
        gates: limits.
        progress: told of each stage.
        engine: to run on; None is ONNX Runtime on the CPU.

    Raises:
        BuildError: when a stage's output is not finite, all equal or saturated; names stage and case.
    """
    manifest = bundle.manifest
    limits = gates.settled(manifest.precision)
    errors: dict[str, list[tuple[float, float, float]]] = {}
    engine = engine or OnnxEngine()
    cases = [reference.case for reference in references]
    chains = [start_of(bundle.folder, manifest, case) for case in cases]
    for stage in stage_order(manifest):
        progress(f"verifying {stage}")
        for session, index in _sessions(bundle, stage, cases, engine):
            reference = references[index]
            for quantity, found in _quantities(manifest, stage, session, reference):
                errors.setdefault(quantity, []).append(errors_of(found, reference.tensors[quantity]))
            advance(manifest, stage, session, chains[index], cases[index])
    rows = tuple(
        _worst(quantity, found, limits)
        for quantity, found in errors.items()
        if not quantity.startswith("upscaled")
    )
    return ParityReport(rows, _lowest_psnr(manifest, references, chains), limits, len(references), machine())


def check_sane(bundle: Bundle, cases: Sequence[CheckCase], progress: Callable[[str], None]) -> None:
    """Run the chain of stages without comparing it with anything.

    Raises:
        BuildError: when a stage's output is not finite, all equal or saturated; names stage and case.
    """
    engine, manifest = OnnxEngine(), bundle.manifest
    chains = [start_of(bundle.folder, manifest, case) for case in cases]
    for stage in stage_order(manifest):
        progress(f"checking {stage}")
        for session, index in _sessions(bundle, stage, cases, engine):
            advance(manifest, stage, session, chains[index], cases[index])


def start_of(folder: Path, manifest: Manifest, case: CheckCase) -> dict[str, Array]:
    """What the chain of a case starts with: the picture and, for runtime prompts, the default tokens."""
    start: dict[str, Array] = {"image": case.image[None]}
    if manifest.prompts.tokenizer is not None:
        tokenizer = Tokenizer.from_file(str(folder / manifest.prompts.tokenizer))
        encoded = tokenizer.encode_batch([manifest.prompts.positive, manifest.prompts.negative])
        start["tokens"] = np.array([prompt.ids for prompt in encoded], np.int64)
    return start


def stage_order(manifest: Manifest) -> list[str]:
    """The bundle's stages in the order in which they feed each other; prompts are folded or the defaults."""
    order = ("text_encoder", "estimator", "modulation", "vae_encoder", "unet", "vae_decoder")
    finishes = (f"finish_{fix}" for fix in manifest.color_fixes)
    return [stage for stage in (*order, *finishes) if stage in manifest.stages]


def advance(
    manifest: Manifest, stage: str, session: Session, chain: dict[str, Array], case: CheckCase
) -> None:
    """Run one stage on what the chain has, and add what it gives.

    Raises:
        BuildError: when an output is not finite, all equal or saturated.
    """
    outputs = _run(session, stage_inputs(manifest, stage, chain))
    for name, value in outputs.items():
        fault = _fault(value)
        if fault:
            raise BuildError(
                f"stage {stage} gives {fault} as {name} ({_describe(case)}); the bundle is not published; "
                "try --precision fp32, and check the weights"
            )
    if stage == "estimator" and case.degradation is not None:
        scores = dict(zip(("noise", "blur"), case.degradation, strict=True))
        outputs["degradation"] = np.array([[scores[axis] for axis in manifest.degradation_axes]], np.float32)
    if stage.startswith("finish_"):
        outputs = {stage.replace("finish", "upscaled"): outputs["upscaled"]}
    chain.update(outputs)


def stage_inputs(manifest: Manifest, stage: str, chain: Mapping[str, Array]) -> dict[str, Array]:
    """What a stage takes of a chain, with the bundle's guidance."""
    guidance = np.asarray(manifest.guidance.default, np.float32)
    return _wanted(manifest, stage, {"guidance": guidance, **chain})


def _sessions(
    bundle: Bundle, stage: str, cases: Sequence[CheckCase], engine: Engine
) -> Iterator[tuple[Session, int]]:
    """A session of every graph of the stage with the number of each case that it serves."""
    spec = bundle.manifest.stages[stage]
    for key in spec.graphs:
        served = [i for i, case in enumerate(cases) if key in (SHARED, case.bin)]
        if served:
            session = engine.open(bundle.folder / bundle.graph(stage, key), spec)
            for index in served:
                yield session, index
            del session  # before the next graph is loaded


def _quantities(
    manifest: Manifest, stage: str, session: Session, reference: Reference
) -> Iterator[tuple[str, Array]]:
    """What a stage makes of PyTorch's inputs, by the names of `Reference.tensors`."""
    given = dict(reference.tensors)
    if stage == "modulation":
        given["degradation"] = given["applied"]
    if stage != "unet":
        for name, value in _run(session, _wanted(manifest, stage, given)).items():
            yield (stage.replace("finish", "upscaled") if name == "upscaled" else name), value
        return
    for prompt, scale in (("positive", 1.0), ("negative", 0.0)):
        if scale or manifest.guidance.mode == "on":
            given["guidance"] = np.asarray(scale, np.float32)
            x0 = _run(session, _wanted(manifest, stage, given))["x0"]
            yield f"epsilon_{prompt}", reference.epsilon_of(x0)
    given["guidance"] = np.asarray(manifest.guidance.default, np.float32)
    yield "x0", _run(session, _wanted(manifest, stage, given))["x0"]


def _run(session: Session, inputs: dict[str, Array]) -> dict[str, Array]:
    return {name: np.asarray(value) for name, value in session.run(inputs).items()}


def _wanted(manifest: Manifest, stage: str, given: Mapping[str, Array]) -> dict[str, Array]:
    """The stage's inputs out of what is given; of two prompts, as many as the UNet takes."""
    inputs = {spec.name: given[spec.name] for spec in manifest.stages[stage].inputs}
    if "prompts" in inputs and manifest.guidance.mode == "off":
        inputs["prompts"] = inputs["prompts"][:1]
    return inputs


def errors_of(found: Array, truth: Array) -> tuple[float, float, float]:
    """Relative, largest and mean absolute error, in float64; not a number counts as infinite."""
    difference = np.abs(np.float64(found) - np.float64(truth))
    norm = float(np.linalg.norm(np.float64(truth)))
    relative = float(np.linalg.norm(difference)) / max(norm, 1e-30)
    values = (relative, float(difference.max()), float(difference.mean()))
    return values if np.isfinite(values).all() else (math.inf, math.inf, math.inf)


def _worst(quantity: str, errors: Sequence[tuple[float, float, float]], limits: Gates) -> Parity:
    relative, largest, mean = (max(column) for column in zip(*errors, strict=True))
    limit = limits.epsilon if quantity.startswith("epsilon") else limits.stage
    return Parity(quantity, relative, largest, mean, limit or 0.0, len(errors))


def _lowest_psnr(
    manifest: Manifest, references: Sequence[Reference], chains: Sequence[Mapping[str, Array]]
) -> dict[str, float | None]:
    lowest: dict[str, float | None] = {}
    for fix in manifest.color_fixes:
        name = f"upscaled_{fix}"
        squares = [
            float(np.mean((np.float64(chain[name]) - np.float64(reference.tensors[name])) ** 2))
            for reference, chain in zip(references, chains, strict=True)
        ]
        lowest[fix] = 10 * math.log10(255**2 / max(squares)) if max(squares) else None
    return lowest


def _fault(value: Array) -> str | None:
    if not np.isfinite(value).all():
        return "values that are not finite"
    if value.size > 2 and np.ptp(value) == 0:
        return "all-equal values"
    if value.dtype == np.uint8 and np.mean((value == 0) | (value == 255)) > _SATURATED:
        return "a saturated image"
    return None


def _describe(case: CheckCase) -> str:
    scores = (
        "estimated" if case.degradation is None else "noise {:.2f}, blur {:.2f}".format(*case.degradation)
    )
    height, width = case.image.shape[:2]
    return f"picture of {width}x{height}, degradation {scores}"


def machine() -> dict[str, str]:
    """Where figures were taken: processor, system, versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "system": platform.platform(terse=True),
        "onnxruntime": onnxruntime.__version__,
        "torch": version("torch"),
    }
