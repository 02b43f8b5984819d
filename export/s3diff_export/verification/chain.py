"""Runs the stages of a bundle one after the other, from a picture to the upscaled one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from s3diff_export.verification.cases import CheckCase
from s3diff_export.verification.reference import Array
from s3diff_runtime.bundle.manifest import SHARED, Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.interface import Engine, Session, Value
from s3diff_runtime.errors import BuildError
from s3diff_runtime.progress import Steps
from s3diff_runtime.stages import STAGES

_SATURATED = 0.98


class Chain:
    """The stages of a bundle on one case: each reads what those before it gave.

    It starts with the picture and, where prompts come at run time, the tokens of the default ones. `tensors`
    is what there is so far, by the names of `run_stage`.
    """

    def __init__(self, bundle: Bundle, case: CheckCase) -> None:
        self.manifest, self.case = bundle.manifest, case
        self.tensors: dict[str, Array] = {"image": case.image[None], **case.given}
        prompts = bundle.manifest.prompts
        if prompts.tokenizer is not None:
            tokenizer = Tokenizer.from_file(str(bundle.folder / prompts.tokenizer))
            encoded = tokenizer.encode_batch([prompts.positive, prompts.negative])
            self.tensors["tokens"] = np.array([prompt.ids for prompt in encoded], np.int64)

    def advance(self, stage: str, session: Session) -> None:
        """Run one stage and keep what it gives; the scores of the case take the place of the estimated ones.

        Raises:
            BuildError: when an output is not finite, all equal or saturated; names stage and case.
        """
        outputs = run_stage(self.manifest, stage, session, self.tensors)
        for name, value in outputs.items():
            fault = _fault(value)
            if fault:
                raise BuildError(
                    f"stage {stage} gives {fault} as {name} ({self.case}); the bundle is not published; "
                    "try --precision fp32, and check the weights"
                )
        if "degradation" in outputs and self.case.scores:
            scores = [self.case.scores[axis] for axis in self.manifest.degradation_axes]
            outputs["degradation"] = np.array([scores], np.float32)
        self.tensors |= outputs


def run_chains(
    bundle: Bundle,
    cases: Sequence[CheckCase],
    engine: Engine,
    progress: Steps,
    inspect: Callable[[str, Session, int], None] = lambda *_: None,
) -> list[Chain]:
    """Run all stages on all cases, from picture to picture; raises as `Chain.advance` does.

    One session is open at a time, so the largest stage bounds the memory. `inspect` is called with each
    stage, its session and the number of the case, before the case advances.
    """
    chains = [Chain(bundle, case) for case in cases]
    for stage, kind in bundle.manifest.ordered_stages():
        if kind.gives_weights:
            continue  # it runs with those that read them, so that the weights of one case are there at a time
        progress(stage)
        for key in bundle.manifest.stages[stage].graphs:
            served = [number for number, case in enumerate(cases) if key in (SHARED, *case.choices)]
            if served:
                session = open_stage(bundle, engine, stage, key)
                for number in served:
                    inspect(stage, session, number)
                    chains[number].advance(stage, session)
                del session  # before the next graph is loaded
    return chains


@dataclass(frozen=True)
class _WithWeights:
    """A stage that reads weights, and the stage that computes them, as one."""

    weights: Session
    reads: frozenset[str]
    """What `weights` reads."""
    stage: Session

    def run(self, inputs: Mapping[str, Value]) -> dict[str, Value]:
        """See `Session.run`."""
        rest = {name: value for name, value in inputs.items() if name not in self.reads}
        return self.stage.run(rest | self.weights.run({name: inputs[name] for name in self.reads}))


def open_stage(bundle: Bundle, engine: Engine, stage: str, key: str) -> Session:
    """A stage that takes what `stage_inputs` gives: with the one, if any, that computes its weights."""
    session = engine.open(bundle.checked_graph(stage, key), bundle.manifest.stages[stage])
    maker = bundle.manifest.weights_stage(stage)
    if maker is None:
        return session
    read = frozenset(spec.name for spec in bundle.manifest.stages[maker].inputs)
    return _WithWeights(open_stage(bundle, engine, maker, SHARED), read, session)


def run_stage(
    manifest: Manifest, stage: str, session: Session, given: Mapping[str, Array]
) -> dict[str, Array]:
    """What a stage makes of those of the given tensors that it reads; pictures are `upscaled_<fix>`."""
    fix = STAGES[stage].color_fix
    outputs = session.run(stage_inputs(manifest, stage, given))
    return {f"{name}_{fix}" if fix else name: np.asarray(value) for name, value in outputs.items()}


def stage_inputs(manifest: Manifest, stage: str, given: Mapping[str, Array]) -> dict[str, Array]:
    """What a stage reads of the given tensors, as many prompts as it takes; the guidance is the bundle's.

    In the place of weights that are not among them there is what the stage reads that computes them.
    """
    known = {"guidance": np.asarray(manifest.guidance.default, np.float32), **given}
    specs, maker = manifest.stages[stage].inputs, manifest.weights_stage(stage)
    if maker is not None and any(spec.name not in known for spec in manifest.stages[maker].outputs):
        specs = (*specs, *manifest.stages[maker].inputs)
        specs = tuple(spec for spec in specs if spec not in manifest.stages[maker].outputs)
    inputs = {spec.name: known[spec.name] for spec in specs}
    if "prompts" in inputs and manifest.guidance.mode == "off":
        inputs["prompts"] = inputs["prompts"][:1]
    return inputs


def _fault(value: Array) -> str | None:
    if not np.isfinite(value).all():
        return "values that are not finite"
    if value.size > 2 and np.ptp(value) == 0:
        return "all-equal values"
    if value.dtype == np.uint8 and np.mean((value == 0) | (value == 255)) > _SATURATED:
        return "a saturated image"
    return None
