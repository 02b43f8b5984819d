"""What sizes a bundle takes: the multiple that it pads to, and the profile of its engines."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from s3diff_runtime.bundle.engine_records import Profile
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.vocabulary import SCALE


@dataclass(frozen=True)
class Limits:
    """Sizes in low-resolution pixels."""

    multiple: int
    """Sides are padded to a multiple of it, inside the graphs."""
    profile: Profile | None
    """What the engines were built for; None takes every size."""

    @classmethod
    def of(cls, bundle: Bundle) -> Self:
        """The limits of what runs of a bundle."""
        manifest, engines = bundle.manifest, bundle.engines
        return cls(manifest.multiple // manifest.scale, engines.identity.profile if engines else None)

    @property
    def least_batch(self) -> int:
        """Smaller batches are filled up, so that nothing is gained by them."""
        return self.profile.batch.min if self.profile else 1

    @property
    def least_tile(self) -> int:
        """The smallest side of a tile."""
        profile = self.profile
        return max(self.multiple, profile.height.min, profile.width.min) if profile else self.multiple

    @property
    def most_side(self) -> int | None:
        """The longest side of a tile, or of what the estimator sees; None for any."""
        return min(self.profile.height.max, self.profile.width.max) if self.profile else None

    def settle(self, options: UpscaleOptions, usual_batch: int | None = None) -> UpscaleOptions:
        """Fit the options to the bundle: defaults give way, and what was asked for is refused.

        Args:
            options: as asked for.
            usual_batch: of the flavour, see `FlavourTraits`.

        Raises:
            RequestError: naming all options that do not fit.
        """
        batch, tile = options.batch, options.tile
        if "batch" not in options.given:
            batch = min(batch, usual_batch or batch)
            if self.profile is not None:
                batch = min(max(batch, self.profile.batch.min), self.profile.batch.max)
        if self.most_side is not None and tile and "tile" not in options.given:
            tile = min(max(tile, self.least_tile), self.most_side)
        fitted = options.but(batch=batch, tile=tile)
        refuse(self._problems(fitted))
        return fitted

    def check_size(self, height: int, width: int, tile: int | None, scale: int = SCALE) -> None:
        """Raise `RequestError` when an image, cut into tiles of `tile` (0 or None: never), fits no engine.

        Engines know the sizes of results, whatever the scale; tiles and profiles count pixels enlarged by 4.
        """
        if self.profile is None:
            return
        longest = max(height, width) * scale / SCALE
        for name, pixels, range in (
            ("high", height, self.profile.height),
            ("wide", width, self.profile.width),
        ):
            side = -(-pixels * scale // SCALE)
            piece = min(side, tile) if tile and longest > tile else side
            padded = -(-piece // self.multiple) * self.multiple
            too_small = min(pixels * scale // SCALE, piece) <= range.min - self.multiple
            if too_small or padded > range.max:
                remedy = "use --tile" if padded > range.max else "build engines with a smaller --min-size"
                raise RequestError(
                    f"image is {pixels} pixels {name}, and the engines take from "
                    f"{range.min - self.multiple + 1} to {range.max}; {remedy}, or use engine onnx"
                )

    def _problems(self, options: UpscaleOptions) -> Iterator[str]:
        tile, multiple = options.tile, self.multiple
        if tile and tile % multiple:
            lower = tile // multiple * multiple
            choices = " or ".join(str(size) for size in (lower, lower + multiple) if size)
            yield f"tile is {tile}, expected a multiple of {multiple} for this bundle: {choices}"
        if self.profile is None:
            return
        most, batches = self.most_side or tile or 0, self.profile.batch
        wider = "build engines with a wider profile, or use engine onnx"
        if tile and not self.least_tile <= tile <= most:
            yield f"tile is {tile}, and the engines take from {self.least_tile} to {most}; {wider}"
        if options.batch > batches.max:
            yield f"batch is {options.batch}, and the engines take up to {batches.max}; {wider}"
