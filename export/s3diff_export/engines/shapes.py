"""The shapes of every stage's inputs that follow from what engines serve."""

from s3diff_runtime.bundle.engine_records import Profile, Shapes
from s3diff_runtime.bundle.manifest import Manifest, Stage
from s3diff_runtime.vocabulary import SCALE

_PROMPTS = (1, 2, 2)  # with guidance, positive and negative


def stage_shapes(manifest: Manifest, stage: Stage, profile: Profile) -> dict[str, Shapes]:
    """The shapes of all inputs of a stage, by name; a fixed axis has one size in all three.

    An image may be smaller than the sides of the profile by less than one multiple, because the graphs pad it
    up. Latent and decoded sides are those of the padded image.

    Raises:
        KeyError: for an axis that no stage of this version has.
    """
    padding = manifest.multiple // SCALE
    axes: dict[int | str, tuple[int, ...]] = {"batch": profile.batch.sizes(), "prompts": _PROMPTS}
    for name, side in (("height", profile.height), ("width", profile.width)):
        axes[name] = side.min - padding + 1, side.opt, side.max
        axes[f"latent_{name}"] = tuple(size * SCALE // manifest.vae_factor for size in side.sizes())
        axes[f"decoded_{name}"] = tuple(size * SCALE for size in side.sizes())
    shapes: dict[str, Shapes] = {}
    for spec in stage.inputs:
        sizes = [(axis,) * 3 if isinstance(axis, int) else axes[axis] for axis in spec.shape]
        least, tuned, largest = (tuple(size[which] for size in sizes) for which in range(3))
        shapes[spec.name] = least, tuned, largest
    return shapes
