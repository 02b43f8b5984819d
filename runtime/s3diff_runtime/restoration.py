"""Takes images through the network: settles bins, groups into batches, cuts large images into tiles."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from s3diff_runtime.bundle.manifest import Bin, Manifest, nearest_bin
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.backoff import Backoff, Sizes
from s3diff_runtime.engines.limits import Limits
from s3diff_runtime.errors import OutOfMemory
from s3diff_runtime.lora_modes import LORA_MODES
from s3diff_runtime.network import Network
from s3diff_runtime.pictures.tiling import TilePlan, estimate_windows
from s3diff_runtime.settings import Conditions, Degradation
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.vocabulary import Pixels

Progress = Callable[[int, int], None]
"""Told after each batch how many tiles are done, of how many; an image that is not cut is one tile. Called
from the thread that asked; what it raises ends the call."""
T = TypeVar("T")


@dataclass
class Restoration:
    """One image on its way through the network."""

    pixels: Pixels
    clock: Clock
    conditions: Conditions
    estimate: Degradation | None
    degradation: Degradation | None
    bin: Bin | None
    plan: TilePlan | None = None
    """How it is cut; None where it is not."""
    upscaled: Pixels | None = None

    @property
    def tiles(self) -> int:
        """How many pieces it is cut into."""
        return len(self.plan) if self.plan else 1


class Restorer:
    """Batches and tiles for one bundle, smaller ones after memory ran out. Safe to use from several threads.

    Args:
        manifest: of the bundle.
        limits: what its engines take.
        options: fitted to them.
    """

    def __init__(self, manifest: Manifest, limits: Limits, options: UpscaleOptions) -> None:
        self._manifest, self._limits, self._options = manifest, limits, options
        self._one_degradation = LORA_MODES[manifest.lora_mode].one_degradation
        self._backoff = Backoff(Sizes(options.batch, options.tile or 0), limits)

    @property
    def sizes(self) -> Sizes:
        """Batch and tile as they are now."""
        return self._backoff.sizes

    def check_size(self, height: int, width: int, scale: int) -> None:
        """Raise `RequestError` when an image, in pixels, is smaller or larger than the engines take."""
        self._limits.check_size(height, width, self.sizes.tile, scale)

    def estimated(self, network: Network, image: Pixels) -> Degradation:
        """What the network reads off an image."""
        return self._estimates(network, {0: image}, [Clock()], self.sizes)[0]

    def companions(self, height: int, width: int, conditions: Conditions) -> Hashable | None:
        """What images have in common that run as one batch; None for one that shares with nobody.

        That is one which is cut into tiles, or needs weights of its own that only its estimate tells.
        """
        if self._is_cut(height, width, conditions, self.sizes.tile):
            return None
        if self._one_degradation and conditions.needs_estimate:
            return None
        exactly = conditions.degradation(None) if self._one_degradation else None
        return height, width, exactly, conditions.of_batch

    def restored(
        self,
        network: Network,
        images: Sequence[Pixels],
        conditions: Sequence[Conditions],
        progress: Progress,
    ) -> list[Restoration]:
        """Run the network, from the beginning again with smaller batches or tiles where memory runs out."""
        while True:
            sizes = self.sizes
            try:
                items = list(self._conditioned(network, images, conditions, sizes))
                self._restore(network, items, sizes, progress)
                return items
            except (OutOfMemory, MemoryError) as error:
                longest = max(
                    self._length(image.shape[0], image.shape[1], own)
                    for image, own in zip(images, conditions, strict=True)
                )
                self._backoff.shrink(sizes, len(images), longest, str(error) or "out of memory on the host")

    def _conditioned(
        self, network: Network, images: Sequence[Pixels], conditions: Sequence[Conditions], sizes: Sizes
    ) -> Iterator[Restoration]:
        """Settle degradation and bin of every image."""
        clocks = [Clock() for _ in images]
        unknown = [number for number, own in enumerate(conditions) if own.needs_estimate]
        found = self._estimates(network, {number: images[number] for number in unknown}, clocks, sizes)
        for number, (image, clock, own) in enumerate(zip(images, clocks, conditions, strict=True)):
            estimate = found.get(number)
            degradation = own.degradation(estimate)
            bin = nearest_bin(self._manifest.bins, *degradation) if degradation else None
            yield Restoration(image, clock, own, estimate, degradation, bin)

    def _estimates(
        self, network: Network, images: Mapping[int, Pixels], clocks: Sequence[Clock], sizes: Sizes
    ) -> dict[int, Degradation]:
        """The degradation of images by their number."""
        least, most = self._limits.least_tile, self._limits.most_side
        samples = [
            (number, image[window])
            for number, image in images.items()
            for window in estimate_windows(image.shape[0], image.shape[1], least, most)
        ]
        found: dict[int, list[Degradation]] = {}
        for batch in _batches(samples, lambda sample: sample[1].shape, sizes.batch):
            clock = Clock()
            estimates = network.estimate(np.stack([pixels for _, pixels in batch]), clock)
            for (number, _), estimate in zip(batch, estimates, strict=True):
                found.setdefault(number, []).append(estimate)
                clocks[number].add(clock.seconds, 1 / len(batch))
        return {number: Degradation(*np.mean(parts, axis=0).tolist()) for number, parts in found.items()}

    def _restore(
        self, network: Network, items: Sequence[Restoration], sizes: Sizes, progress: Progress
    ) -> None:
        """Run large images tile by tile, and small ones with all that can share a batch with them."""
        for item in items:
            item.plan = self._plan(item.pixels, item.conditions, sizes.tile)
        small = [item for item in items if item.plan is None]
        done, total = 0, sum(item.tiles for item in items)

        def count(tiles: int) -> None:
            nonlocal done
            done += tiles
            progress(done, total)

        for batch in _batches(small, self._companions, sizes.batch):
            clock = Clock()
            images = np.stack([item.pixels for item in batch])
            degradations = [item.degradation for item in batch]
            upscaled = network.restore(
                images, degradations, batch[0].bin, [item.conditions for item in batch], clock
            )
            for item, pixels in zip(batch, upscaled, strict=True):
                item.upscaled = pixels
                item.clock.add(clock.seconds, 1 / len(batch))
            count(len(batch))
        for item in items:
            if item.plan is not None:
                tiles = self._restored_tiles(network, item, item.plan, sizes.batch, count)
                item.upscaled = item.plan.blend(tiles, item.conditions.scale)

    def _plan(self, pixels: Pixels, conditions: Conditions, tile: int) -> TilePlan | None:
        """How an image is cut, into tiles of the size `tile` once they are enlarged; None where it is not."""
        height, width, _ = pixels.shape
        if not self._is_cut(height, width, conditions, tile):
            return None
        usual, scale = self._manifest.scale, conditions.scale
        side, overlap = (length * usual // scale for length in (tile, self._options.overlap_of(tile)))
        return TilePlan.of(height, width, side, overlap)

    def _restored_tiles(
        self,
        network: Network,
        item: Restoration,
        plan: TilePlan,
        batch: int,
        count: Callable[[int], None],
    ) -> Iterator[Pixels]:
        for tiles in _chunks(plan.cut(item.pixels), batch):
            degradations, conditions = [item.degradation] * len(tiles), [item.conditions] * len(tiles)
            upscaled = network.restore(np.stack(tiles), degradations, item.bin, conditions, item.clock)
            count(len(tiles))  # before the tiles: after the last one nobody asks again
            yield from upscaled

    def _is_cut(self, height: int, width: int, conditions: Conditions, tile: int) -> bool:
        return 0 < tile < self._length(height, width, conditions)

    def _length(self, height: int, width: int, conditions: Conditions) -> int:
        """The longer side of an image in the pixels of tiles, of which the usual scale makes the result's."""
        return -(-max(height, width) * conditions.scale // self._manifest.scale)

    def _companions(self, item: Restoration) -> Hashable:
        """What images must have in common to run as one batch."""
        exactly = item.degradation if self._one_degradation else None
        return item.pixels.shape, item.bin and item.bin.name, exactly, item.conditions.of_batch


def _batches(items: Iterable[T], key: Callable[[T], Hashable], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items with equal keys, in the order of first appearance."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    for group in groups.values():
        yield from _chunks(group, size)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    remaining = iter(items)
    while chunk := list(islice(remaining, size)):
        yield chunk
