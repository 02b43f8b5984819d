"""What is asked for an image: degradation, guidance, prompts, colour correction."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple, Self, TypedDict, cast

from s3diff_runtime.bundle.manifest import Manifest, chosen_keys
from s3diff_runtime.errors import refuse
from s3diff_runtime.families import FAMILIES, FamilyTraits
from s3diff_runtime.lora_modes import LORA_MODES
from s3diff_runtime.options import Options, option
from s3diff_runtime.strengths import Strengths
from s3diff_runtime.vocabulary import SCALE, SCALES, ColorFix


class Degradation(NamedTuple):
    """How noisy and how blurred an image is; scores in [0, 1] (paper section 3.2)."""

    noise: float
    blur: float


class UpscaleSettings(TypedDict, total=False):
    """The fields of `PictureSettings`, for those who call; None, or a missing key, is its default."""

    noise: float | None
    blur: float | None
    guidance: float | None
    color_fix: ColorFix | None
    prompt: str | None
    negative_prompt: str | None
    tags: str | None
    pixel: float | None
    semantic: float | None
    scale: int | None


_ADJUSTABLE = ", ".join(traits.title for traits in FAMILIES.values() if traits.adjusts) + "."


@dataclass(frozen=True)
class PictureSettings(Options):
    """What an `Upscaler` can be asked for; None leaves it to the picture or the bundle."""

    noise: float | None = option(
        None, "Noise score in the place of the estimated one: more removes more.", least=0, most=1
    )
    blur: float | None = option(
        None, "Blur score in the place of the estimated one: more sharpens more.", least=0, most=1
    )
    guidance: float | None = option(
        None, "Scale of the guidance away from the negative prompt (eq. 5); 1 is none."
    )
    color_fix: ColorFix | None = option(
        None,
        "How the colours are brought back to the input's, tile by tile.",
        shown=", ".join(f"{traits.title}: {traits.color_fix}" for traits in FAMILIES.values()),
    )
    prompt: str | None = option(None, "Text to guide towards, for bundles built with --prompts runtime.")
    negative_prompt: str | None = option(None, "Text to guide away from, for the same bundles.")
    tags: str | None = option(
        None,
        "What the picture shows, with commas between; the prompt of the same bundles is made of it as in the "
        "released code. "
        + ", ".join(traits.title for traits in FAMILIES.values() if traits.tags_prompt)
        + ".",
    )
    pixel: float | None = option(None, f"Strength of the pixel part. {_ADJUSTABLE}", shown="1")
    semantic: float | None = option(None, f"Strength of the semantic part. {_ADJUSTABLE}", shown="1")
    scale: int | None = option(
        None,
        "Sides of the result over those of the input.",
        least=min(SCALES),
        most=max(SCALES),
        shown=str(SCALE),
    )

    @property
    def keywords(self) -> UpscaleSettings:
        """The same for callers of an `Upscaler`."""
        return cast(UpscaleSettings, {each.name: getattr(self, each.name) for each in fields(self)})

    def problems(self) -> Iterator[str]:
        """Two prompts for one picture."""
        if self.prompt is not None and self.tags is not None:
            yield "prompt and tags: a prompt is made of the tags; pass one of them"


@dataclass(frozen=True)
class Conditions:
    """Settings that were checked against a bundle, its defaults filled in."""

    noise: float | None
    blur: float | None
    guidance: float | None
    """None where the bundle has no guidance."""
    color_fix: ColorFix
    prompts: tuple[str, ...]
    """Positive and, with guidance, negative; empty where the graphs hold them."""
    strengths: Strengths | None
    """None where the bundle cannot be adjusted."""
    scale: int
    estimates: bool
    """Whether the bundle reads a degradation off pictures."""

    @property
    def of_batch(self) -> Hashable:
        """What images must have in common to run as one batch."""
        return self.guidance, self.color_fix, self.prompts, self.scale, self.choices

    @property
    def choices(self) -> frozenset[str]:
        """What decides, besides a bin, which graph of a stage serves, see `Bundle.key`."""
        return chosen_keys(self.scale, self.strengths)

    @classmethod
    def of(cls, manifest: Manifest, settings: PictureSettings) -> Self:
        """Check settings against a bundle.

        Raises:
            RequestError: naming everything that the bundle cannot do.
        """
        refuse(_ability_problems(manifest, settings))
        guides, texts = manifest.guidance.mode == "on", manifest.prompts
        prompts: tuple[str, ...] = ()
        if texts.mode == "runtime":
            positive = texts.positive if settings.prompt is None else settings.prompt
            if settings.tags is not None:
                positive = FAMILIES[manifest.family].tags_prompt.format(tags=settings.tags)
            negative = texts.negative if settings.negative_prompt is None else settings.negative_prompt
            prompts = (positive, negative) if guides else (positive,)
        guidance = manifest.guidance.default if settings.guidance is None else settings.guidance
        return cls(
            noise=settings.noise,
            blur=settings.blur,
            guidance=guidance if guides else None,
            color_fix=settings.color_fix or usual_color_fix(manifest),
            prompts=prompts,
            strengths=_strengths(settings) if manifest.is_adjustable else None,
            scale=settings.scale or manifest.scale,
            estimates=bool(manifest.degradation_axes),
        )

    @property
    def needs_estimate(self) -> bool:
        """Whether a score is left to the image."""
        return self.estimates and (self.noise is None or self.blur is None)

    def degradation(self, estimated: Degradation | None) -> Degradation | None:
        """The scores to apply: those set by hand, else the estimated ones (given if `needs_estimate`).

        None where the bundle takes none.
        """
        if not self.estimates:
            return None
        noise, blur = estimated or (0.0, 0.0)
        return Degradation(
            noise if self.noise is None else float(self.noise),
            blur if self.blur is None else float(self.blur),
        )


def _strengths(settings: PictureSettings) -> Strengths:
    usual = Strengths()
    return Strengths(
        usual.pixel if settings.pixel is None else float(settings.pixel),
        usual.semantic if settings.semantic is None else float(settings.semantic),
    )


def usual_color_fix(manifest: Manifest) -> ColorFix:
    """The family's own, or the first that the bundle has where it was built without that."""
    usual = FAMILIES[manifest.family].color_fix
    return usual if usual in manifest.color_fixes else manifest.color_fixes[0]


def family_problems(family: FamilyTraits, settings: PictureSettings) -> Iterator[str]:
    """What is asked for that a family does not have."""
    if not family.estimates and not (settings.noise is None and settings.blur is None):
        yield f"{family.title} restores without a degradation and takes no noise and no blur"
    if settings.guidance is not None and not family.guides:
        yield f"{family.title} has one prompt, and takes no guidance"
    if settings.negative_prompt is not None and not family.guides:
        yield f"{family.title} has one prompt, and takes no negative prompt"
    if not family.adjusts and not settings.pixel is settings.semantic is None:
        yield f"{family.title} takes no pixel and no semantic strength"
    if settings.tags is not None and not family.tags_prompt:
        yield f"{family.title} takes no tags"


def _ability_problems(manifest: Manifest, settings: PictureSettings) -> Iterator[str]:
    family, folded = FAMILIES[manifest.family], manifest.prompts.mode == "folded"
    yield from family_problems(family, settings)
    unguided = family.guides and manifest.guidance.mode == "off"
    if settings.guidance is not None and unguided:
        yield "this bundle was built with --guidance off and takes no guidance"
    fixed = family.adjusts and not manifest.is_adjustable
    if fixed and not settings.pixel is settings.semantic is None:
        modes = " or ".join(mode for mode in family.lora_modes if LORA_MODES[mode].takes_modulation)
        yield f"this bundle has both strengths merged in as 1; build it with --lora-mode {modes}"
    if settings.color_fix not in (None, *manifest.color_fixes):
        yield f"color_fix is {settings.color_fix!r}, this bundle has {', '.join(manifest.color_fixes)}"
    if settings.scale not in (None, *manifest.scales):
        yield f"scale is {settings.scale}, this bundle has {', '.join(map(str, manifest.scales))}"
    if folded and not (settings.prompt is settings.negative_prompt is settings.tags is None):
        yield "this bundle has its prompts folded in and takes none; build it with --prompts runtime"
    elif settings.negative_prompt is not None and unguided:
        yield "this bundle was built with --guidance off and takes no negative prompt"
