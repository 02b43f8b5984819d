"""What is asked for an image: degradation, guidance, prompts, colour correction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self, TypedDict

from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import RequestError


class Degradation(NamedTuple):
    """How noisy and how blurred an image is; scores in [0, 1] (paper section 3.2)."""

    noise: float
    blur: float


class UpscaleSettings(TypedDict, total=False):
    """What an `Upscaler` can be asked for; None, or a missing key, leaves it to the image or the bundle."""

    noise: float | None
    """Noise score in [0, 1] in the place of the estimated one: higher removes more."""
    blur: float | None
    """Blur score in [0, 1] in the place of the estimated one: higher sharpens more."""
    guidance: float | None
    """Scale of the guidance away from the negative prompt (eq. 5); 1 is none."""
    color_fix: str
    """`wavelet` (default), `adain` or `none`, of those in the bundle. Tiled images: tile by tile."""
    prompt: str | None
    """Text to guide towards, where the bundle encodes prompts."""
    negative_prompt: str | None
    """Text to guide away from, where the bundle encodes prompts and guides."""


@dataclass(frozen=True)
class Conditions:
    """Settings that were checked against a bundle, its defaults filled in."""

    noise: float | None
    blur: float | None
    guidance: float | None
    """None where the bundle has no guidance."""
    color_fix: str
    prompts: tuple[str, ...]
    """Positive and, with guidance, negative; empty where the graphs hold them."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        noise: float | None = None,
        blur: float | None = None,
        guidance: float | None = None,
        color_fix: str = "wavelet",
        prompt: str | None = None,
        negative_prompt: str | None = None,
    ) -> Self:
        """Check `UpscaleSettings` against a bundle.

        Raises:
            RequestError: naming everything that is out of range or that the bundle cannot do.
        """
        problems = [
            *_score_problems(noise=noise, blur=blur),
            *_ability_problems(manifest, guidance, color_fix, prompt, negative_prompt),
        ]
        if problems:
            raise RequestError("; ".join(problems))
        guides, texts = manifest.guidance.mode == "on", manifest.prompts
        prompts: tuple[str, ...] = ()
        if texts.mode == "runtime":
            positive = texts.positive if prompt is None else prompt
            negative = texts.negative if negative_prompt is None else negative_prompt
            prompts = (positive, negative) if guides else (positive,)
        scale = manifest.guidance.default if guidance is None else guidance
        return cls(noise, blur, scale if guides else None, color_fix, prompts)

    @property
    def needs_estimate(self) -> bool:
        """Whether a score is left to the image."""
        return self.noise is None or self.blur is None

    def degradation(self, estimated: Degradation | None) -> Degradation:
        """The scores to apply: those set by hand, else the estimated ones (given if `needs_estimate`)."""
        noise, blur = estimated or (0.0, 0.0)
        return Degradation(
            noise if self.noise is None else float(self.noise),
            blur if self.blur is None else float(self.blur),
        )


def _score_problems(**scores: float | None) -> Iterator[str]:
    for name, score in scores.items():
        if score is not None and not 0 <= score <= 1:
            yield f"{name} is {score}, expected a score from 0 to 1"


def _ability_problems(
    manifest: Manifest,
    guidance: float | None,
    color_fix: str,
    prompt: str | None,
    negative_prompt: str | None,
) -> Iterator[str]:
    guides = manifest.guidance.mode == "on"
    if guidance is not None and not guides:
        yield "this bundle was built with --guidance off and takes no guidance"
    elif guidance is not None and not math.isfinite(guidance):
        yield f"guidance is {guidance}, expected a finite number"
    if color_fix not in manifest.color_fixes:
        yield f"color_fix is {color_fix!r}, this bundle has {', '.join(manifest.color_fixes)}"
    if manifest.prompts.mode == "folded":
        if prompt is not None or negative_prompt is not None:
            yield "this bundle has its prompts folded in and takes none; build it with --prompts runtime"
    elif negative_prompt is not None and not guides:
        yield "this bundle was built with --guidance off and takes no negative prompt"
