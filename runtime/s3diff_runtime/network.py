"""Runs the stages of a bundle on batches of images of one size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np

from s3diff_runtime.bundle import Bundle, SessionPool
from s3diff_runtime.errors import JobError
from s3diff_runtime.manifest import SHARED, Bin
from s3diff_runtime.prompts import PromptEncoder
from s3diff_runtime.session import Value
from s3diff_runtime.settings import Conditions, Degradation
from s3diff_runtime.tiling import Pixels

_STAGES = ("modulation", "vae_encoder", "unet", "vae_decoder")


class Clock:
    """Seconds spent in each stage, of all the work that was given this clock."""

    def __init__(self) -> None:
        """Starts with no stage."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def running(self, stage: str) -> Iterator[None]:
        """Count the time of the block for `stage`."""
        start = perf_counter()
        yield
        self.add({stage: perf_counter() - start})

    def add(self, seconds: dict[str, float], share: float = 1.0) -> None:
        """Count a share of what another clock shows."""
        for stage, spent in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + share * spent


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
        tensors: dict[str, Value] = {"image": images}
        self._run("estimator", None, tensors, clock)
        scores = np.asarray(tensors["degradation"])
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
        rows = degradations[:1] if manifest.lora_mode == "fused" else degradations
        scores = [[getattr(row, axis) for axis in manifest.degradation_axes] for row in rows]
        tensors: dict[str, Value] = {"image": images, "degradation": np.array(scores, np.float32)}
        if conditions.guidance is not None:
            tensors["guidance"] = np.array(conditions.guidance, np.float32)
        if conditions.prompts:
            with clock.running("text_encoder"):
                tensors["prompts"] = self._encode_prompts(conditions.prompts)
        for stage in (*_STAGES, f"finish_{conditions.color_fix}"):
            if self._graphs(stage):
                self._run(stage, bin, tensors, clock)
        return np.asarray(tensors["upscaled"])

    def _run(self, stage: str, bin: Bin | None, tensors: dict[str, Value], clock: Clock) -> None:
        """Feed a stage from `tensors` by name, and put its outputs there."""
        session = self._sessions.get(stage, bin)
        spec = self._bundle.manifest.stages[stage]
        with clock.running(stage):
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
