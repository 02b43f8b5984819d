"""Upscales images with a bundle."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Self, Unpack, cast, overload

import numpy as np
from PIL import Image

from s3diff_runtime.bundle.fetching import local_bundle
from s3diff_runtime.bundle.manifest import Bin, Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.sessions import SessionPool
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.flavours import FLAVOURS
from s3diff_runtime.engines.interface import Engine
from s3diff_runtime.engines.limits import Limits
from s3diff_runtime.errors import RequestError
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.network import Network
from s3diff_runtime.pictures.photograph import Photograph, open_photograph
from s3diff_runtime.pictures.reading import PictureSource
from s3diff_runtime.restoration import Progress, Restoration, Restorer
from s3diff_runtime.settings import Conditions, PictureSettings, UpscaleSettings
from s3diff_runtime.upscale_options import CPU_BUDGET_MIB, UpscaleOptions
from s3diff_runtime.vocabulary import Pixels

ImageLike = PictureSource | Photograph
Each = Sequence[UpscaleSettings] | Callable[[Pixels], UpscaleSettings] | None
"""Settings of each image by itself, or what makes them of its pixels."""


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
        self._restorer = Restorer(self.manifest, Limits.of(bundle), options)
        self._network: Network | None = network

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
            bundle: its folder; `owner/name` or `owner/name@revision` of the Hub; or a URL that fsspec opens.
                What lies elsewhere is fetched once, checked by hash and kept, see `bundle.fetching`.
            engine: `onnx`, `openvino`, `tensorrt`, `tensorrt-rtx`; `auto` for the fastest that fits this
                machine.
            device: `cpu`, `cuda`, or `cuda:N`. Another device is never taken in its place.
            options: tiles, batches, threads, memory, checks.

        Raises:
            BundleError: for a bundle that is damaged, altered, newer than this version, or does not load.
            RequestError: for a bundle that cannot be fetched, an unknown engine or device, one that this
                machine lacks, engines that were built for another machine, and a tile or batch that does not
                fit the bundle.
            JobError: when the device has not the memory for the weights.
        """
        options = options or UpscaleOptions()
        opened = Bundle.open(local_bundle(bundle), options.check)
        runner, opened = open_engine(opened, engine, device, options)
        options = Limits.of(opened).settle(options, FLAVOURS[runner.name].usual_batch)
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
        self,
        images: ImageLike,
        each: Each = None,
        progress: Progress = ...,
        **settings: Unpack[UpscaleSettings],
    ) -> Result: ...

    @overload
    def __call__(
        self,
        images: Sequence[ImageLike],
        each: Each = None,
        progress: Progress = ...,
        **settings: Unpack[UpscaleSettings],
    ) -> list[Result]: ...

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        each: Each = None,
        progress: Progress = lambda done, total: None,
        **settings: Unpack[UpscaleSettings],
    ) -> Result | list[Result]:
        """Upscale an image, or a list of them in batches.

        Args:
            images: one of what `open_photograph` takes (a path, bytes, a binary file, a PIL image, a uint8
                array, a photograph), or a list of them.
            each: settings of each image, over those for all: one dictionary for each, or what makes one of
                an image's pixels, such as a tagger.
            progress: told after each batch how many tiles are done.
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
            return self([images], each, progress, **settings)[0]
        photographs = [open_photograph(image) for image in cast(Sequence[ImageLike], images)]
        pixels = [photograph.pixels for photograph in photographs]
        return self._upscale(pixels, photographs, each, settings, progress)

    def upscale_pixels(
        self,
        images: Sequence[Pixels],
        each: Each = None,
        progress: Progress = lambda done, total: None,
        **settings: Unpack[UpscaleSettings],
    ) -> list[Result]:
        """Upscale arrays that are pixels already: uint8 RGB `[H, W, 3]` of any sizes. See `__call__`."""
        return self._upscale(images, [None] * len(images), each, settings, progress)

    def estimate(self, pixels: Pixels) -> dict[str, float]:
        """The scores `noise` and `blur`, in [0, 1], that the network reads off an image, uint8 `[H, W, 3]`.

        Raises:
            RequestError: for an image that the engines do not take, and a family that reads no scores.
            JobError: when the network fails.
        """
        if not self.manifest.degradation_axes:
            raise RequestError(
                f"{FAMILIES[self.manifest.family].title} restores without a degradation and estimates none"
            )
        return self._restorer.estimated(self._opened([pixels], [None]), pixels)._asdict()

    def companions(self, height: int, width: int, settings: PictureSettings) -> Hashable | None:
        """What images must have in common that run as one batch where `upscale_pixels` gets them together.

        None for one that shares with nobody: it is cut into tiles, or needs weights of its own that only its
        estimate tells.
        """
        return self._restorer.companions(height, width, Conditions.of(self.manifest, settings))

    def check_size(self, height: int, width: int, scale: int | None = None) -> None:
        """Raise `RequestError` when an image, in pixels, is smaller or larger than the engines take."""
        self._restorer.check_size(height, width, scale or self.manifest.scale)

    def _upscale(
        self,
        images: Sequence[Pixels],
        photographs: Sequence[Photograph | None],
        each: Each,
        settings: UpscaleSettings,
        progress: Progress,
    ) -> list[Result]:
        start = perf_counter()
        asked: list[UpscaleSettings] = [{**settings, **own} for own in _own_settings(images, each)]
        conditions = [Conditions.of(self.manifest, PictureSettings(**own)) for own in asked]
        network = self._opened(images, [own.scale for own in conditions])
        items = self._restorer.restored(network, images, conditions, progress)
        _count_host_time(items, perf_counter() - start)
        return [self._result(item, photograph) for item, photograph in zip(items, photographs, strict=True)]

    def _opened(self, images: Sequence[Pixels], scales: Sequence[int | None]) -> Network:
        """The network, where it takes such images and is open."""
        _require_pixels(images)
        for image, scale in zip(images, scales, strict=True):
            self.check_size(image.shape[0], image.shape[1], scale)
        if self._network is None:
            raise RequestError("this upscaler is closed; open the bundle again")
        return self._network

    def _result(self, item: Restoration, photograph: Photograph | None) -> Result:
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


def _count_host_time(items: Sequence[Restoration], elapsed: float) -> None:
    staged = sum(sum(item.clock.seconds.values()) for item in items)
    for item in items:
        item.clock.add({"host": elapsed - staged}, 1 / len(items))
