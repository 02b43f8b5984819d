"""Upscales images with a bundle: estimates, picks bins, groups into batches, cuts large images into tiles."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar, Unpack, cast, overload

import numpy as np
from PIL import Image

from s3diff_runtime.bundle.manifest import Bin, Manifest, nearest_bin
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.backoff import Backoff, Sizes
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.interface import Engine
from s3diff_runtime.engines.limits import Limits
from s3diff_runtime.errors import OutOfMemory, RequestError
from s3diff_runtime.lora_modes import LORA_MODES
from s3diff_runtime.network import Network
from s3diff_runtime.pictures.photograph import Photograph, open_photograph
from s3diff_runtime.pictures.reading import PictureSource
from s3diff_runtime.pictures.tiling import TilePlan, estimate_windows
from s3diff_runtime.settings import Conditions, Degradation, PictureSettings, UpscaleSettings
from s3diff_runtime.upscale_options import CPU_BUDGET_MIB, UpscaleOptions
from s3diff_runtime.vocabulary import Pixels

ImageLike = PictureSource | Photograph
Each = Sequence[UpscaleSettings] | Callable[[Pixels], UpscaleSettings] | None
"""Settings of each image by itself, or what makes them of its pixels."""
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """An upscaled image and how it came about."""

    pixels: Pixels
    """uint8 RGB `[scale H, scale W, 3]`."""
    estimated: dict[str, float] | None
    """The scores `noise` and `blur` read off the image, in [0, 1]; None where both were set by hand, or the
    family reads none."""
    applied: dict[str, float]
    """The scores that were asked of the network. A merged bundle answers with the weights of `bin`. Empty
    where the family takes none."""
    bin: Bin | None
    """The bin whose weights were used; None unless the bundle is merged."""
    engine: str
    device: str
    precision: str
    """What the engine computed in: `bf16` or `f32` where it chose, else that of the bundle."""
    seconds: dict[str, float]
    """Time by stage, and under `host` everything else: opening graphs, cutting, blending. An image's share of
    what it was batched with; summed over a list, the whole time."""
    tiles: int
    """How many pieces the image was cut into; 1 if it was not."""
    photograph: Photograph | None = field(default=None, repr=False)
    """What was opened, with the alpha, profile and mode that `image` takes over."""

    @cached_property
    def image(self) -> Image.Image:
        """The image as it would be saved: with the mode, alpha and ICC profile of what was given."""
        return self.photograph.finish(self.pixels) if self.photograph else Image.fromarray(self.pixels)


@dataclass
class _Restoration:
    """One image on its way through the network."""

    pixels: Pixels
    clock: Clock
    conditions: Conditions
    estimate: Degradation | None
    degradation: Degradation | None
    bin: Bin | None
    tiles: int = 1
    upscaled: Pixels | None = None


class Upscaler:
    """Upscales images ×4 with a bundle. Make it with `open`; close it, or use it as a context manager.

    Safe to call from several threads.

    Attributes:
        manifest: of the bundle.
        engine, device, precision: what runs it, and what that computes in; see `Result`.
        options: as opened with, fitted to the engines.
    """

    def __init__(self, bundle: Bundle, network: Network, engine: Engine, options: UpscaleOptions) -> None:
        self.manifest: Manifest = bundle.manifest
        self.engine, self.device, self.options = engine.name, engine.device, options
        self.precision: str = engine.precision or bundle.manifest.precision
        self._limits = Limits.of(bundle)
        self._network: Network | None = network
        sizes, limits = Sizes(options.batch, options.tile or 0), self._limits
        self._backoff = Backoff(sizes, limits.least_batch, limits.least_tile, limits.multiple)

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        engine: str = "auto",
        device: str = "cpu",
        options: UpscaleOptions | None = None,
    ) -> Self:
        """Check a bundle and load what every image needs of it.

        Args:
            bundle: its folder.
            engine: `onnx`, `openvino`, `tensorrt`, `tensorrt-rtx`; `auto` for the fastest that fits this
                machine.
            device: `cpu`, `cuda`, or `cuda:N`. Another device is never taken in its place.
            options: tiles, batches, threads, memory, checks.

        Raises:
            BundleError: for a bundle that is damaged, altered, newer than this version, or does not load.
            RequestError: for an unknown engine or device, one that this machine lacks, engines that were
                built for another machine, and a tile or batch that does not fit the bundle.
            JobError: when the device has not the memory for the weights.
        """
        options = options or UpscaleOptions()
        opened = Bundle.open(Path(bundle), options.check)
        runner, opened = open_engine(opened, engine, device, options)
        options = Limits.of(opened).settle(options)
        sessions = SessionPool(opened, runner, _bins_budget(options, device))
        network = Network(opened, sessions, options.check_finite)
        network.open_shared()
        return cls(opened, network, runner, options)

    def close(self) -> None:
        """Free the graphs. Closing twice is allowed."""
        self._network = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload  # a string is a sequence of strings to mypy, and one path to us
    def __call__(  # type: ignore[overload-overlap]
        self, images: ImageLike, each: Each = None, **settings: Unpack[UpscaleSettings]
    ) -> Result: ...

    @overload
    def __call__(
        self, images: Sequence[ImageLike], each: Each = None, **settings: Unpack[UpscaleSettings]
    ) -> list[Result]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        each: Each = None,
        **settings: Unpack[UpscaleSettings],
    ) -> Result | list[Result]:
        """Upscale an image, or a list of them in batches.

        Args:
            images: one of what `open_photograph` takes (a path, bytes, a binary file, a PIL image, a uint8
                array, a photograph), or a list of them.
            each: settings of each image, over those for all: one dictionary for each, or what makes one of
                an image's pixels, such as a tagger.
            settings: `noise`, `blur`, `guidance`, `color_fix`, `prompt`, `negative_prompt`, `tags`, `pixel`,
                `semantic`, `scale`,
                for all images; see `UpscaleSettings`.

        Returns:
            A result, or one for each of the list in its order.

        Raises:
            RequestError: for settings out of range or that the bundle cannot do, and images that cannot be
                read.
            JobError: when the network fails.
        """
        if isinstance(images, str | bytes | bytearray | memoryview) or not isinstance(images, Sequence):
            return self([images], each, **settings)[0]
        photographs = [open_photograph(image) for image in cast(Sequence[ImageLike], images)]
        pixels = [photograph.pixels for photograph in photographs]
        return self._upscale(pixels, photographs, each, settings)

    def upscale_pixels(
        self, images: Sequence[Pixels], each: Each = None, **settings: Unpack[UpscaleSettings]
    ) -> list[Result]:
        """Upscale arrays that are pixels already: uint8 RGB `[H, W, 3]` of any sizes. See `__call__`."""
        return self._upscale(images, [None] * len(images), each, settings)

    def check_size(self, height: int, width: int, scale: int | None = None) -> None:
        """Raise `RequestError` when an image, in pixels, is smaller or larger than the engines take."""
        self._limits.check_size(height, width, self._backoff.sizes.tile, scale or self.manifest.scale)

    def _upscale(
        self,
        images: Sequence[Pixels],
        photographs: Sequence[Photograph | None],
        each: Each,
        settings: UpscaleSettings,
    ) -> list[Result]:
        start = perf_counter()
        _require_pixels(images)
        asked: list[UpscaleSettings] = [{**settings, **own} for own in _own_settings(images, each)]
        conditions = [Conditions.of(self.manifest, PictureSettings(**own)) for own in asked]
        for image, own in zip(images, conditions, strict=True):
            self.check_size(image.shape[0], image.shape[1], own.scale)
        if self._network is None:
            raise RequestError("this upscaler is closed; open the bundle again")
        items = self._restored(self._network, images, conditions)
        _count_host_time(items, perf_counter() - start)
        return [self._result(item, photograph) for item, photograph in zip(items, photographs, strict=True)]

    def _restored(
        self, network: Network, images: Sequence[Pixels], conditions: Sequence[Conditions]
    ) -> list[_Restoration]:
        """Run the network, from the beginning again with smaller batches or tiles where memory runs out."""
        while True:
            sizes = self._backoff.sizes
            try:
                items = list(self._conditioned(network, images, conditions, sizes))
                self._restore(network, items, sizes)
                return items
            except (OutOfMemory, MemoryError) as error:
                longest = max(self._length(image, own) for image, own in zip(images, conditions, strict=True))
                self._backoff.shrink(sizes, len(images), longest, str(error) or "out of memory on the host")

    def _conditioned(
        self, network: Network, images: Sequence[Pixels], conditions: Sequence[Conditions], sizes: Sizes
    ) -> Iterator[_Restoration]:
        """Settle degradation and bin of every image."""
        clocks = [Clock() for _ in images]
        unknown = [number for number, own in enumerate(conditions) if own.needs_estimate]
        found = self._estimates(network, {number: images[number] for number in unknown}, clocks, sizes)
        for number, (image, clock, own) in enumerate(zip(images, clocks, conditions, strict=True)):
            estimate = found.get(number)
            degradation = own.degradation(estimate)
            bin = nearest_bin(self.manifest.bins, *degradation) if degradation else None
            yield _Restoration(image, clock, own, estimate, degradation, bin)

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

    def _restore(self, network: Network, items: Sequence[_Restoration], sizes: Sizes) -> None:
        """Run large images tile by tile, and small ones with all that can share a batch with them."""
        small = [
            item
            for item in items
            if not sizes.tile or self._length(item.pixels, item.conditions) <= sizes.tile
        ]
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
        for item in items:
            if item.upscaled is None:
                self._restore_tiled(network, item, sizes)

    def _restore_tiled(self, network: Network, item: _Restoration, sizes: Sizes) -> None:
        """Cut an image into tiles that have the size of `sizes.tile` once they are enlarged."""
        height, width, _ = item.pixels.shape
        conditions, usual = item.conditions, self.manifest.scale
        tile, overlap = (
            side * usual // conditions.scale for side in (sizes.tile, self.options.overlap_of(sizes.tile))
        )
        plan = TilePlan.of(height, width, tile, overlap)

        def restored() -> Iterator[Pixels]:
            for tiles in _chunks(plan.cut(item.pixels), sizes.batch):
                degradations = [item.degradation] * len(tiles)
                shared = [conditions] * len(tiles)
                yield from network.restore(np.stack(tiles), degradations, item.bin, shared, item.clock)

        item.tiles = len(plan)
        item.upscaled = plan.blend(restored(), conditions.scale)

    def _length(self, image: Pixels, conditions: Conditions) -> int:
        """The longer side of an image in the pixels of tiles, of which the usual scale makes the result's."""
        return -(-max(image.shape[:2]) * conditions.scale // self.manifest.scale)

    def _companions(self, item: _Restoration) -> Hashable:
        """What images must have in common to run as one batch."""
        exactly = item.degradation if LORA_MODES[self.manifest.lora_mode].one_degradation else None
        return item.pixels.shape, item.bin and item.bin.name, exactly, item.conditions.of_batch

    def _result(self, item: _Restoration, photograph: Photograph | None) -> Result:
        return Result(
            pixels=np.asarray(item.upscaled),
            estimated=item.estimate and item.estimate._asdict(),
            applied=item.degradation._asdict() if item.degradation else {},
            bin=item.bin,
            engine=self.engine,
            device=self.device,
            precision=self.precision,
            seconds=item.clock.seconds,
            tiles=item.tiles,
            photograph=photograph,
        )


def _own_settings(images: Sequence[Pixels], each: Each) -> Iterator[UpscaleSettings]:
    if callable(each):
        yield from map(each, images)
        return
    settings = [UpscaleSettings() for _ in images] if each is None else each
    if len(settings) != len(images):
        raise RequestError(f"settings of {len(settings)} images for {len(images)}; expected one of each")
    yield from settings


def _bins_budget(options: UpscaleOptions, device: str) -> int:
    """Bytes for the weights of bins. The other half of a GPU is for the stages' own weights and memory."""
    if options.memory_mib is not None:
        return options.memory_mib * 2**20
    free = Device.parse(device).free_memory()
    return CPU_BUDGET_MIB * 2**20 if free is None else free // 2


def _require_pixels(images: Sequence[Pixels]) -> None:
    problems = [
        f"image {number} is {image.dtype} {list(image.shape)}"
        for number, image in enumerate(images)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size
    ]
    if problems:
        raise RequestError(f"{'; '.join(problems)}; expected uint8 [H, W, 3] with H and W of 1 or more")


def _count_host_time(items: Sequence[_Restoration], elapsed: float) -> None:
    staged = sum(sum(item.clock.seconds.values()) for item in items)
    for item in items:
        item.clock.add({"host": elapsed - staged}, 1 / len(items))


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
