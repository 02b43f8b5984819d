"""Pictures in, pictures out: decoding, the network and encoding, for a bounded number at a time."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from math import ceil
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np

from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.bundle.manifest import nearest_bin
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.pictures.formats import FileFormat, encode
from s3diff_runtime.pictures.photograph import Photograph, open_photograph
from s3diff_runtime.serving.bodies import Refused
from s3diff_runtime.serving.collector import AbandonedJob, Collector, Job
from s3diff_runtime.serving.metrics import Metrics
from s3diff_runtime.serving.picture_request import PictureRequest
from s3diff_runtime.settings import Conditions, usual_color_fix
from s3diff_runtime.strengths import Strengths
from s3diff_runtime.upscale_options import USUAL_TILE
from s3diff_runtime.upscaler import Result

_VERSION = version("s3diff-export")

T = TypeVar("T")
_CODECS = 2
"""Pictures that are decoded or encoded at a time."""
_LONGEST_RETRY = 60


@dataclass(frozen=True)
class Answer:
    """An encoded result."""

    content: bytes
    format: FileFormat
    facts: dict[str, Any]
    """What was done: scores, bin, engine, device, version, tiles, size, notes."""
    seconds: dict[str, float]
    """`queue`, `read`, the stages, `write`."""


@dataclass(eq=False)
class Visit(Generic[T]):
    """A picture in the service, which holds a place until the work on it has ended."""

    task: asyncio.Task[T] = field(init=False)
    steps: asyncio.Queue[tuple[int, int]] = field(default_factory=asyncio.Queue)
    """Tiles done, of how many: (0, 0) when it is decoded and waits, (0, 1) when the network begins."""
    abandoned: bool = False
    job: Job | None = None


class Service:
    """Upscales encoded pictures with the upscalers of a fleet, at most `places` at a time.

    Belongs to one event loop, and is used from there.

    Attributes:
        ready: whether the network has run once.

    Args:
        fleet: open upscalers of one bundle.
        places: pictures that may be inside; further ones are refused.
        max_pixels: larger pictures are refused before they are decoded.
        metrics: told what happens.
    """

    def __init__(self, fleet: Fleet, places: int, max_pixels: int, metrics: Metrics) -> None:
        self.fleet, self.ready = fleet, False
        self._places, self._max_pixels, self._metrics = places, max_pixels, metrics
        self._collector = Collector(fleet, metrics.batches.observe)
        self._codecs = ThreadPoolExecutor(_CODECS, "codec")
        self._visits: set[Visit[Any]] = set()
        self._pace = 0.0
        metrics.inside.set_function(lambda: len(self._visits))

    async def warm_up(self) -> None:
        """Run a picture of the usual size on every device; raises what an `Upscaler` raises."""
        for upscaler in self.fleet.upscalers:
            side = upscaler.options.tile or USUAL_TILE
            noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
            start = perf_counter()
            await asyncio.to_thread(upscaler.upscale_pixels, [noise])
            self._pace = perf_counter() - start
        self.ready = True

    def described(self) -> dict[str, Any]:
        """What clients should know: the factor, what can be asked for, what runs it, and the limits."""
        manifest = self.fleet.manifest
        return {
            "version": _VERSION,
            "family": FAMILIES[manifest.family].title,
            "scale": manifest.scale,
            "scales": manifest.scales,
            "scores": manifest.degradation_axes,
            "strengths": Strengths._fields if manifest.is_adjustable else (),
            "guidance": {"mode": manifest.guidance.mode, "default": manifest.guidance.default},
            "color_fixes": manifest.color_fixes,
            "color_fix": usual_color_fix(manifest),
            "prompts": manifest.prompts.mode,
            "lora_mode": manifest.lora_mode,
            "engine": self.fleet.engine,
            "device": self.fleet.device,
            "precision": self.fleet.precision,
            "queue": self._places,
            "max_pixels": self._max_pixels,
        }

    def check(self, asked: PictureRequest) -> None:
        """Raise `RequestError` for what the bundle cannot do, `Refused` where no place is free, or none yet.

        Asked before the body is read as well: it need not be then.
        """
        if not self.ready:
            raise Refused(503, "the service is warming up", {"Retry-After": "5"})
        Conditions.of(self.fleet.manifest, asked.settings)
        if len(self._visits) >= self._places:
            self._metrics.refused.inc()
            probably = min(max(ceil(self._pace), 1), _LONGEST_RETRY)
            raise Refused(503, "the service is busy; try again in a moment", {"Retry-After": str(probably)})

    def upscale(self, body: bytes, asked: PictureRequest) -> Visit[Answer]:
        """Begin to work on a picture; the visit's task gives the answer. Raises as `check`."""
        self.check(asked)
        return self._enter(lambda visit: self._upscaled(visit, body, asked))

    def estimate(self, body: bytes) -> Visit[dict[str, Any]]:
        """Begin to read the scores off a picture, and name the bin that they ask for. Raises as `check`."""
        self.check(PictureRequest())
        return self._enter(lambda visit: self._in_codec(self._estimated, visit, body))

    def abandon(self, visit: Visit[Any]) -> None:
        """Nobody waits for the answer: what was not begun never is; the place is free when all has ended.

        Changes nothing where the answer is there.
        """
        visit.abandoned = True
        if visit.job:
            self._collector.abandon(visit.job)

    def close(self) -> None:
        """Finish what is inside, and end all threads."""
        self._collector.close()
        self._codecs.shutdown()

    def _enter(self, work: Callable[[Visit[T]], Coroutine[Any, Any, T]]) -> Visit[T]:
        visit = Visit[T]()
        self._visits.add(visit)
        visit.task = asyncio.create_task(work(visit))
        visit.task.add_done_callback(partial(self._leave, visit))
        return visit

    def _leave(self, visit: Visit[Any], task: asyncio.Task[Any]) -> None:
        self._visits.discard(visit)
        if not task.cancelled():
            task.exception()  # whoever waits is told; nobody may be waiting

    async def _upscaled(self, visit: Visit[Any], body: bytes, asked: PictureRequest) -> Answer:
        start = perf_counter()
        photograph, format = await self._in_codec(self._decoded, visit, body, asked)
        read = perf_counter() - start
        visit.steps.put_nowait((0, 0))
        _require_wanted(visit)
        loop = asyncio.get_running_loop()

        def tell(done: int, tiles: int) -> None:
            loop.call_soon_threadsafe(visit.steps.put_nowait, (done, tiles))

        visit.job = self._collector.submit(photograph.pixels, asked.settings, tell)
        result = await asyncio.wrap_future(visit.job.result)
        _require_wanted(visit)
        computed = sum(result.seconds.values())
        self._pace += (computed - self._pace) / 8
        start = perf_counter()
        content, notes = await self._in_codec(
            lambda: encode(photograph.finish(result.pixels), format, asked.quality)
        )
        seconds = {
            "queue": visit.job.seconds_queued,
            "read": read,
            **result.seconds,
            "write": perf_counter() - start,
        }
        self._metrics.count(photograph.size, seconds)
        return Answer(content, format, self._facts(photograph, result, notes), seconds)

    async def _in_codec(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._codecs, work, *arguments)

    def _decoded(
        self, visit: Visit[Any], body: bytes, asked: PictureRequest
    ) -> tuple[Photograph, FileFormat]:
        _require_wanted(visit)
        photograph = open_photograph(body, self._max_pixels)
        width, height = photograph.size
        scale = asked.settings.scale or self.fleet.manifest.scale
        self.fleet.check_size(height, width, scale)
        return photograph, asked.format_for(photograph, scale)

    def _estimated(self, visit: Visit[Any], body: bytes) -> dict[str, Any]:
        _require_wanted(visit)
        photograph = open_photograph(body, self._max_pixels)
        scores = self.fleet.upscalers[0].estimate(photograph.pixels)
        bin = nearest_bin(self.fleet.manifest.bins, scores["noise"], scores["blur"])
        width, height = photograph.size
        return {**scores, "bin": bin.name if bin else None, "width": width, "height": height}

    def _facts(self, photograph: Photograph, result: Result, notes: tuple[str, ...]) -> dict[str, Any]:
        height, width, _ = result.pixels.shape
        return {
            **{name: round(score, 4) for name, score in result.applied.items()},
            "bin": result.bin.name if result.bin else None,
            "engine": result.engine,
            "device": result.device,
            "precision": result.precision,
            "version": _VERSION,
            "tiles": result.tiles,
            "width": width,
            "height": height,
            "notes": [*photograph.notes, *notes],
        }


def _require_wanted(visit: Visit[Any]) -> None:
    if visit.abandoned:
        raise AbandonedJob
