"""The shapes of every stage's inputs that follow from what engines serve."""

from __future__ import annotations

from typing import NamedTuple

from s3diff_runtime.bundle.engine_records import Profile, Range
from s3diff_runtime.bundle.manifest import Manifest, Stage
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.vocabulary import SCALE

_MOST_PROMPTS = 2  # positive and negative


class Shapes(NamedTuple):
    """Least, tuned and largest shape of an input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def stage_shapes(manifest: Manifest, stage: Stage, profile: Profile) -> dict[str, Shapes]:
    """The shapes of all inputs of a stage, by name; a fixed axis has one size in all three.

    An image may be smaller than the sides of the profile by less than one multiple, because the graphs pad it
    up. Latent and decoded sides are those of the padded image.

    Args:
        manifest: of the bundle, for its factors.
        stage: one of its stages.
        profile: low-resolution pixels, in multiples of the bundle's padding.

    Raises:
        KeyError: for an axis that no stage of this version has.
    """
    axes = _free_axes(manifest, profile)
    return {spec.name: _shapes(spec, axes) for spec in stage.inputs}


def _free_axes(manifest: Manifest, profile: Profile) -> dict[str, Range]:
    """What every named axis may be."""
    padding = manifest.multiple // SCALE
    axes = {"batch": profile.batch, "prompts": Range(min=1, opt=_MOST_PROMPTS, max=_MOST_PROMPTS)}
    for name, side in (("height", profile.height), ("width", profile.width)):
        axes[name] = Range(min=side.min - padding + 1, opt=side.opt, max=side.max)
        axes[f"latent_{name}"] = _scaled(side, SCALE, manifest.vae_factor)
        axes[f"decoded_{name}"] = _scaled(side, SCALE, 1)
    return axes


def _scaled(side: Range, factor: int, divisor: int) -> Range:
    sizes = (size * factor // divisor for size in side.sizes())
    return Range(**dict(zip(("min", "opt", "max"), sizes, strict=True)))


def _shapes(spec: TensorSpec, axes: dict[str, Range]) -> Shapes:
    ranges = [
        Range(min=axis, opt=axis, max=axis) if isinstance(axis, int) else axes[axis] for axis in spec.shape
    ]
    return Shapes(
        tuple(axis.min for axis in ranges),
        tuple(axis.opt for axis in ranges),
        tuple(axis.max for axis in ranges),
    )
