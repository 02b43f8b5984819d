"""Runs the stages of a bundle on batches of images of one size."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.bundle.manifest import SHARED, Bin, Stage, chosen_keys
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import Lane, Value, shape_of
from s3diff_runtime.engines.limits import Limits
from s3diff_runtime.errors import BundleError, JobError
from s3diff_runtime.lora_modes import LORA_MODES
from s3diff_runtime.prompts import PromptEncoder
from s3diff_runtime.settings import Conditions, Degradation
from s3diff_runtime.stages import picture_stages
from s3diff_runtime.vocabulary import Pixels

T = TypeVar("T", bound=np.generic)

UPLOAD, DOWNLOAD = "upload", "download"
"""Under which the copies to the device and back are timed, beside the stages."""
_SLACK = 1e-3  # of scores, for rounding
_FLAT, _OVERDRIVEN = 1e-5, 1e3
"""Between them is the contrast of every picture: the mean deviation from its mean, in a range of -1 to 1."""
_PLAIN = 64  # levels between which a picture may become one colour, where brightness is lost
_REBUILD = "the bundle's graphs are not what its manifest says: rebuild it with s3diff-export build"


class Network:
    """The stages of a bundle, chained by the names of their tensors.

    Args:
        bundle: what the stages are.
        sessions: runs them.
        check_finite: whether each stage's output is searched for NaN and infinity.
    """

    def __init__(self, bundle: Bundle, sessions: SessionPool, check_finite: bool = False) -> None:
        self._bundle, self._sessions, self._check_finite = bundle, sessions, check_finite
        self._least_batch = Limits.of(bundle).least_batch
        self._encode_prompts = PromptEncoder(bundle, sessions)

    def open_shared(self) -> None:
        """Open the stages that every image needs, whatever its degradation and settings."""
        for stage, kind in self._bundle.manifest.ordered_stages():
            if not kind.on_demand and SHARED in self._bundle.manifest.stages[stage].graphs:
                self._sessions.get(stage)

    def estimate(self, images: Pixels, clock: Clock) -> list[Degradation]:
        """The degradation of each image of a batch, uint8 `[N, H, W, 3]`.

        Raises:
            JobError: when a stage fails, or gives no finite scores.
        """
        filled = _filled(images, self._least_batch)
        with self._sessions.engine.lane(clock) as lane:
            tensors = _uploaded(lane, {"image": filled})
            self._run("estimator", (), tensors, lane)
            scores = _downloaded(lane, tensors["degradation"])[: len(images)]
        if not np.isfinite(scores).all():
            raise JobError("stage estimator gave scores that are not finite; set noise and blur by hand")
        if np.abs(scores - 0.5).max() > 0.5 + _SLACK:
            raise BundleError(
                f"stage estimator gave scores from {scores.min():.3g} to {scores.max():.3g}, "
                f"expected from 0 to 1; {_REBUILD}"
            )
        axes = self._bundle.manifest.degradation_axes
        return [Degradation(**dict(zip(axes, row, strict=True))) for row in scores.tolist()]

    def restore(
        self,
        images: Pixels,
        degradations: Sequence[Degradation | None],
        bin: Bin | None,
        conditions: Sequence[Conditions],
        clock: Clock,
    ) -> Pixels:
        """Upscale a batch (paper section 3.1; eq. 5 for the guidance).

        Args:
            images: uint8 `[N, H, W, 3]`.
            degradations: one for each image; all equal where the LoRA mode has one degradation a call, and
                None where the family has none.
            bin: whose weights to use; None for a bundle without bins.
            conditions: one for each image, which have `Conditions.of_batch` in common.
            clock: counts the time of each stage.

        Returns:
            uint8 `[N, scale H, scale W, 3]`.

        Raises:
            JobError: when a stage fails, or what it gave is no picture: not finite, or of one colour.
        """
        specs = self._bundle.manifest.stages
        shared = conditions[0]
        stages = [stage for stage in picture_stages(shared.color_fix) if stage in specs]
        read = {tensor.name for stage in stages for tensor in specs[stage].inputs}
        given = self._given(images, degradations, conditions, clock)
        scale, choices = shared.scale, chosen_keys(shared.scale, shared.strengths, bin.name if bin else None)
        with self._sessions.engine.lane(clock) as lane:
            once = self._by_degradation(stages)
            by_picture = {name: given[name] for name in given if name in read}
            tensors: dict[str, Value] = {}
            if once:
                scores = {"degradation": by_picture.pop("degradation")}
                tensors |= lane.standing(degradations[0], partial(self._weights, once, scores, lane))
            tensors |= _uploaded(lane, by_picture)
            for stage in stages:
                if stage not in once:
                    self._run(stage, choices, tensors, lane)
            count, height, width, channels = shape_of(tensors["image"])
            expected, found = (count, scale * height, scale * width, channels), shape_of(tensors["upscaled"])
            if found != expected:
                raise BundleError(f"the last stage gave {list(found)}, expected {list(expected)}; {_REBUILD}")
            upscaled = _downloaded(lane, tensors["upscaled"])[: len(images)]
            contrast = _downloaded(lane, tensors["contrast"]) if "contrast" in tensors else None
        _require_pictures(images, upscaled, contrast)
        return upscaled

    def _by_degradation(self, stages: Sequence[str]) -> tuple[str, ...]:
        """Those that read nothing but a degradation, where it is one for all images of a call."""
        manifest, known = self._bundle.manifest, {"degradation"}
        found: list[str] = []
        for stage in stages if LORA_MODES[manifest.lora_mode].one_degradation else ():
            spec = manifest.stages[stage]
            if known.issuperset(tensor.name for tensor in spec.inputs):
                found.append(stage)
                known |= {tensor.name for tensor in spec.outputs}
        return tuple(found)

    def _weights(
        self, stages: Sequence[str], scores: Mapping[str, NDArray[Any]], lane: Lane
    ) -> dict[str, Value]:
        """What the stages give that depend on a degradation alone: modulations, and weights."""
        tensors = _uploaded(lane, scores)
        for stage in stages:
            self._run(stage, (), tensors, lane)
        del tensors["degradation"]
        return tensors

    def _given(
        self,
        images: Pixels,
        degradations: Sequence[Degradation | None],
        conditions: Sequence[Conditions],
        clock: Clock,
    ) -> dict[str, NDArray[Any]]:
        """What the host gives to the stages."""
        manifest = self._bundle.manifest
        axes, one_for_all = manifest.degradation_axes, LORA_MODES[manifest.lora_mode].one_degradation
        given: dict[str, NDArray[Any]] = {"image": _filled(images, self._least_batch)}
        if axes:
            scores = np.array([[getattr(row, axis) for axis in axes] for row in degradations], np.float32)
            given["degradation"] = scores[:1] if one_for_all else _filled(scores, self._least_batch)
        shared = conditions[0]
        if shared.guidance is not None:
            given["guidance"] = np.array(shared.guidance, np.float32)
        if shared.strengths is not None:
            strengths = np.array([own.strengths for own in conditions], np.float32)
            for column, name in enumerate(("pixel_scale", "semantic_scale")):
                given[name] = _filled(strengths[:, column], self._least_batch)
        if shared.prompts:
            given["prompts"] = self._encode_prompts(shared.prompts, clock)
        return given

    def _run(self, stage: str, choices: Collection[str], tensors: dict[str, Value], lane: Lane) -> None:
        """Feed a stage from `tensors` by name, and put its outputs there."""
        session = self._sessions.get(stage, choices)
        spec = self._bundle.manifest.stages[stage]
        with lane.timed(stage):
            outputs = session.run({tensor.name: tensors[tensor.name] for tensor in spec.inputs})
        for problem in _shape_problems(spec, tensors, outputs):
            raise BundleError(f"stage {stage} gave {problem}; {_REBUILD}")
        for name, value in outputs.items() if self._check_finite else ():
            if not np.isfinite(np.asarray(value)).all():
                raise JobError(
                    f"stage {stage} gave values of {name} that are not finite; if the bundle is fp16, "
                    "build one with --precision fp32"
                )
        tensors |= outputs


def _shape_problems(spec: Stage, inputs: Mapping[str, Value], outputs: Mapping[str, Value]) -> Iterator[str]:
    """Outputs that have not the shapes of the manifest, where axes of one name have one size."""
    sizes: dict[int | str, int] = {}
    for tensor in spec.inputs:
        sizes |= dict(zip(tensor.shape, shape_of(inputs[tensor.name]), strict=True))
    for tensor in spec.outputs:
        found = shape_of(outputs[tensor.name])
        expected = [axis if isinstance(axis, int) else sizes.get(axis, axis) for axis in tensor.shape]
        fits = len(found) == len(expected) and all(
            size >= 1 and (size == axis or isinstance(axis, str))
            for size, axis in zip(found, expected, strict=True)
        )
        if not fits:
            yield f"{tensor.name} of shape {list(found)}, expected {expected}"


def _require_pictures(images: Pixels, upscaled: Pixels, contrast: NDArray[np.float32] | None) -> None:
    """Raise `JobError` where the network gave no picture; clamped to bytes, NaN looks like black.

    Bundles from before that measured no contrast show it by their bytes alone: one colour out of many levels.
    """
    if contrast is None:
        pairs = zip(images, upscaled, strict=True)
        dead = [result.min() == result.max() and np.ptp(image) > _PLAIN for image, result in pairs]
    else:
        dead = [not _FLAT < found < _OVERDRIVEN for found in contrast[: len(images)].tolist()]
    if any(dead):
        raise JobError(
            "the network gave no picture, but values that are not finite or one flat colour: its weights are "
            "damaged (s3diff-export inspect BUNDLE --check), or too large for fp16 (--precision fp32)"
        )


def _uploaded(lane: Lane, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Value]:
    with lane.timed(UPLOAD):
        return {name: lane.upload(name, array) for name, array in arrays.items()}


def _downloaded(lane: Lane, value: Value) -> NDArray[Any]:
    with lane.timed(DOWNLOAD):
        return np.asarray(value)


def _filled(rows: NDArray[T], count: int) -> NDArray[T]:
    """Engines may take no batch below some size: the last row again and again; its results are dropped."""
    missing = max(count - len(rows), 0)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
