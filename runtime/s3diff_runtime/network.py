"""Runs the stages of a bundle on batches of images of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.bundle.manifest import SHARED, Bin
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.interface import Lane, Value
from s3diff_runtime.errors import JobError
from s3diff_runtime.prompts import PromptEncoder
from s3diff_runtime.settings import Conditions, Degradation
from s3diff_runtime.vocabulary import Pixels

T = TypeVar("T", bound=np.generic)

UPLOAD, DOWNLOAD = "upload", "download"
"""Under which the copies to the device and back are timed, beside the stages."""

_STAGES = ("modulation", "vae_encoder", "unet", "vae_decoder")


class Network:
    """The stages of a bundle, chained by the names of their tensors.

    Args:
        bundle: what the stages are.
        sessions: runs them.
        check_finite: whether each stage's output is searched for NaN and infinity.
    """

    def __init__(self, bundle: Bundle, sessions: SessionPool, check_finite: bool = False) -> None:
        """See the class."""
        self._bundle, self._sessions, self._check_finite = bundle, sessions, check_finite
        self._least_batch = bundle.engines.identity.profile.batch.min if bundle.engines else 1
        self._encode_prompts = PromptEncoder(bundle, sessions)

    def open_shared(self) -> None:
        """Open the stages that every image needs, whatever its degradation and settings."""
        for stage in ("estimator", *_STAGES):
            if SHARED in self._graphs(stage):
                self._sessions.get(stage)

    def estimate(self, images: Pixels, clock: Clock) -> list[Degradation]:
        """The degradation of each image of a batch, uint8 `[N, H, W, 3]`.

        Raises:
            JobError: when a stage fails, or gives no finite scores.
        """
        filled = _filled(images, self._least_batch)
        with self._sessions.engine.lane(clock) as lane:
            tensors = _uploaded(lane, {"image": filled})
            self._run("estimator", None, tensors, lane)
            scores = _downloaded(lane, tensors["degradation"])[: len(images)]
        if not np.isfinite(scores).all():
            raise JobError("stage estimator gave scores that are not finite; set noise and blur by hand")
        axes = self._bundle.manifest.degradation_axes
        return [Degradation(**dict(zip(axes, row, strict=True))) for row in scores.tolist()]

    def restore(
        self,
        images: Pixels,
        degradations: Sequence[Degradation],
        bin: Bin | None,
        conditions: Conditions,
        clock: Clock,
    ) -> Pixels:
        """Upscale a batch (paper section 3.1; eq. 5 for the guidance).

        Args:
            images: uint8 `[N, H, W, 3]`.
            degradations: one for each image; for a `fused` bundle they must all be equal.
            bin: whose merged weights to use; None unless the bundle is `merged`.
            conditions: colour correction, guidance, prompts.
            clock: counts the time of each stage.

        Returns:
            uint8 `[N, 4H, 4W, 3]`.

        Raises:
            JobError: when a stage fails, or its output is not finite and that is checked.
        """
        manifest = self._bundle.manifest
        finish = f"finish_{conditions.color_fix}"
        stages = [stage for stage in (*_STAGES, finish) if self._graphs(stage)]
        read = {tensor.name for stage in stages for tensor in manifest.stages[stage].inputs}
        given = self._given(images, degradations, conditions, clock)
        with self._sessions.engine.lane(clock) as lane:
            tensors = _uploaded(lane, {name: given[name] for name in given if name in read})
            for stage in stages:
                self._run(stage, bin, tensors, lane)
            return _downloaded(lane, tensors["upscaled"])[: len(images)]

    def _given(
        self, images: Pixels, degradations: Sequence[Degradation], conditions: Conditions, clock: Clock
    ) -> dict[str, NDArray[Any]]:
        """What the host gives to the stages."""
        axes, one_for_all = self._bundle.manifest.degradation_axes, self._bundle.manifest.lora_mode == "fused"
        scores = np.array([[getattr(row, axis) for axis in axes] for row in degradations], np.float32)
        given: dict[str, NDArray[Any]] = {
            "image": _filled(images, self._least_batch),
            "degradation": scores[:1] if one_for_all else _filled(scores, self._least_batch),
        }
        if conditions.guidance is not None:
            given["guidance"] = np.array(conditions.guidance, np.float32)
        if conditions.prompts:
            with clock.running("text_encoder"):
                given["prompts"] = self._encode_prompts(conditions.prompts)
        return given

    def _run(self, stage: str, bin: Bin | None, tensors: dict[str, Value], lane: Lane) -> None:
        """Feed a stage from `tensors` by name, and put its outputs there."""
        session = self._sessions.get(stage, bin)
        spec = self._bundle.manifest.stages[stage]
        with lane.timed(stage):
            outputs = session.run({tensor.name: tensors[tensor.name] for tensor in spec.inputs})
        for name, value in outputs.items() if self._check_finite else ():
            if not np.isfinite(np.asarray(value)).all():
                raise JobError(
                    f"stage {stage} gave values of {name} that are not finite; if the bundle is fp16, "
                    "build one with --precision fp32"
                )
        tensors |= outputs

    def _graphs(self, stage: str) -> dict[str, str]:
        """The stage's graphs by bin; empty where the bundle has no such stage."""
        spec = self._bundle.manifest.stages.get(stage)
        return spec.graphs if spec else {}


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
