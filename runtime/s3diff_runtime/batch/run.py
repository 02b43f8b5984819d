"""Upscales many pictures: reading, computing and writing overlap, and one bad picture stops no other."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from threading import Barrier, Lock
from time import perf_counter
from typing import Any, Literal

from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.jobs import Job
from s3diff_runtime.batch.sizing import ResultSize, Sized, Sizing, is_whole
from s3diff_runtime.errors import JobError, RequestError, S3DiffError
from s3diff_runtime.pictures.comparison import before_and_after
from s3diff_runtime.pictures.formats import QUALITY, require_fit, save
from s3diff_runtime.pictures.photograph import MAX_PIXELS, Photograph, open_photograph
from s3diff_runtime.remote import Place, RemotePath
from s3diff_runtime.settings import PictureSettings, UpscaleSettings
from s3diff_runtime.upscaler import Result, Upscaler

Status = Literal["done", "skipped", "failed", "not done"]

_CHUNK_SECONDS = 2.0
"""About how long an upscaler works before progress is shown; longer chunks batch a little better."""
_LARGEST_CHUNK = 8
"""Batches in a chunk, at most."""
_CHUNK_PIXELS = 4_000_000
"""Input pixels in a chunk, unless a single picture has more."""
_WAITING_PIXELS = 128_000_000
"""Result pixels that may wait to be written, unless a single picture has more: they hold memory."""
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
"""After these no other picture can be written either."""


@dataclass(frozen=True)
class BatchOptions:
    """What is done to every picture of a batch."""

    settings: PictureSettings = field(default_factory=PictureSettings)
    """Degradation, guidance, prompts, colour correction, scale."""
    result_size: ResultSize = field(default_factory=ResultSize)
    """In the place of a scale."""
    each: Mapping[Place, UpscaleSettings] = field(default_factory=dict)
    """Settings of single pictures over these, by `Job.source`."""
    quality: int = QUALITY
    """Of JPEG and WebP results, 1 to 100."""
    resume: bool = False
    """Whether a picture with whole outputs of the right size is skipped."""
    max_pixels: int = MAX_PIXELS
    """Inputs with more pixels fail."""
    threads: int = 2
    """That read ahead, and as many that write behind. Stores answer slowly, and many requests at once."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    job: Job
    status: Status = "not done"
    error: str | None = None
    """Why it failed."""
    input_size: tuple[int, int] | None = None
    """`(width, height)`, upright."""
    output_size: tuple[int, int] | None = None
    estimated: dict[str, float] | None = None
    """The degradation read off the picture; None where it was set by hand."""
    applied: dict[str, float] | None = None
    """The degradation asked of the network."""
    settings: UpscaleSettings = field(default_factory=UpscaleSettings)
    """Its own, over those for all."""
    bin: str | None = None
    """Name of the bin whose weights were used, for merged bundles."""
    tiles: int | None = None
    notes: tuple[str, ...] = ()
    """What reading or writing the picture lost or converted."""
    seconds: dict[str, float] = field(default_factory=dict)
    """`read`, the stages of the network, `host` (between the stages) and `write`."""

    def as_json(self) -> dict[str, Any]:
        """The entry of a report, see docs/upscaling.md."""
        return {
            "input": str(self.job.source),
            "output": str(self.job.target),
            "comparison": str(self.job.comparison) if self.job.comparison else None,
            "status": self.status,
            "error": self.error,
            "input_size": self.input_size,
            "output_size": self.output_size,
            "degradation": {"estimated": self.estimated, "applied": self.applied},
            "settings": self.settings,
            "bin": self.bin,
            "tiles": self.tiles,
            "notes": self.notes,
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
        }


@dataclass(frozen=True)
class _DecodedPicture:
    """A decoded picture on its way to the network."""

    number: int
    photograph: Photograph
    sized: Sized

    @property
    def pixels(self) -> int:
        return self.photograph.pixels.shape[0] * self.photograph.pixels.shape[1]

    @property
    def held(self) -> int:
        """Pixels of the result, while it waits to be written."""
        return max(self.pixels * self.sized.scale**2, self.sized.width * self.sized.height)


class Batch:
    """Upscales the pictures of a list of jobs.

    Some threads read ahead and as many write behind those of the fleet, which run the network. What waits
    between them is bounded, in pictures before the network and in pixels after it.

    Attributes:
        outcomes: one for each job, in order, as far as the jobs were taken; complete once `run` ended.

    Args:
        fleet: the open upscalers, of one bundle.
        jobs: see `plan_jobs`; or what finds them meanwhile, see `ListedJobs`.
        options: for all pictures.
        on_outcome: called with each outcome that is settled, from any thread.
    """

    def __init__(
        self,
        fleet: Fleet,
        jobs: Iterable[Job],
        options: BatchOptions,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._jobs = iter(jobs)
        self._fleet, self._options, self._on_outcome = fleet, options, on_outcome
        self._batch = fleet.options.batch
        self._sizing = Sizing.asked(options.result_size, options.settings.scale, fleet.manifest)
        self._chunk_length = self._batch
        self._waiting: deque[tuple[Future[None], int]] = deque()  # writes, with their result pixels
        self._making_room = Lock()
        self._disk_error: JobError | None = None

    def run(self) -> None:
        """Do the jobs. Pictures that cannot be read, computed or written become failed outcomes.

        When interrupted, what the network has finished is still written, and nothing else is started.

        Raises:
            JobError: when the disk is full or gone; the outcomes say what was done.
            BundleError: when a graph of the bundle cannot be loaded.
        """
        with (
            ThreadPoolExecutor(self._options.threads, "write") as writers,
            ThreadPoolExecutor(self._options.threads, "read") as readers,
        ):
            # All writers start here: of one that an interruption meets at its start, its pool knows nothing.
            all_there = Barrier(self._options.threads, timeout=1)
            wait([writers.submit(all_there.wait) for _ in range(self._options.threads)])
            try:
                chunks = self._chunks(filter(None, self._read_ahead(readers)))
                self._fleet.drain(chunks, lambda upscaler, chunk: self._upscale(upscaler, chunk, writers))
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                if isinstance(self._jobs, Generator):
                    self._jobs.close()  # lists no further
                self.outcomes += map(Outcome, self._jobs)
        self._make_room(_WAITING_PIXELS)  # all of it: waits for the last write
        self._raise_disk_error()

    def _upscale(self, upscaler: Upscaler, chunk: list[_DecodedPicture], writers: ThreadPoolExecutor) -> None:
        """Upscale a chunk and leave the results to the writers."""
        self._make_room(sum(picture.held for picture in chunk))
        start = perf_counter()
        for picture, result in self._upscaled(upscaler, chunk):
            write = writers.submit(self._write, picture, result)
            with self._making_room:
                self._waiting.append((write, picture.held))
        per_picture = (perf_counter() - start) / len(chunk)
        length = min(_LARGEST_CHUNK * self._batch, int(_CHUNK_SECONDS / per_picture))
        self._chunk_length = max(self._batch, length)
        self._raise_disk_error()

    def _read_ahead(self, readers: ThreadPoolExecutor) -> Iterator[_DecodedPicture | None]:
        ahead: deque[Future[_DecodedPicture | None]] = deque()
        for number, job in enumerate(self._jobs):
            self.outcomes.append(Outcome(job))
            ahead.append(readers.submit(self._read, number))
            if len(ahead) > 2 * max(self._batch * len(self._fleet.upscalers), self._options.threads // 2):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _read(self, number: int) -> _DecodedPicture | None:
        """Decode a picture; None when its outcome is settled already."""
        start, outcome = perf_counter(), self.outcomes[number]
        try:
            if outcome.job.problem:
                raise RequestError(outcome.job.problem)
            if self._options.resume and is_whole(outcome.job, self._sizing, self._options.max_pixels):
                self._settle(number, replace(outcome, status="skipped"))
                return None
            photograph = open_photograph(outcome.job.source, self._options.max_pixels)
            height, width = photograph.pixels.shape[:2]
            sized = self._sizing.of(*photograph.size)
            self._fleet.check_size(height, width, sized.scale)
            require_fit(outcome.job.target, sized.width, sized.height, photograph.transparent)
        except S3DiffError as error:
            self._settle(number, replace(outcome, status="failed", error=str(error)))
            return None
        self.outcomes[number] = replace(
            outcome,
            input_size=photograph.size,
            output_size=(sized.width, sized.height),
            notes=photograph.notes,
            seconds={"read": perf_counter() - start},
        )
        return _DecodedPicture(number, photograph, sized)

    def _chunks(self, pictures: Iterator[_DecodedPicture]) -> Iterator[list[_DecodedPicture]]:
        """Lists of pictures for one call of the upscaler, which batches those that go together."""
        chunk = list[_DecodedPicture]()
        for picture in pictures:
            if chunk and sum(each.pixels for each in chunk) + picture.pixels > _CHUNK_PIXELS:
                yield chunk
                chunk = []
            chunk.append(picture)
            if len(chunk) >= self._chunk_length:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def _upscaled(
        self, upscaler: Upscaler, chunk: list[_DecodedPicture]
    ) -> Iterator[tuple[_DecodedPicture, Result]]:
        """The results of a chunk; when it fails, its pictures are tried one by one."""
        try:
            pixels = [picture.photograph.pixels for picture in chunk]
            each: list[UpscaleSettings] = [
                {**self._own_settings(picture.number), "scale": picture.sized.scale} for picture in chunk
            ]
            results = upscaler.upscale_pixels(pixels, each, **self._options.settings.keywords)
        except JobError as error:
            if len(chunk) == 1:
                number = chunk[0].number
                self._settle(number, replace(self.outcomes[number], status="failed", error=str(error)))
            else:
                for picture in chunk:
                    yield from self._upscaled(upscaler, [picture])
            return
        yield from zip(chunk, results, strict=True)

    def _own_settings(self, number: int) -> UpscaleSettings:
        return self._options.each.get(self.outcomes[number].job.source, UpscaleSettings())

    def _make_room(self, pixels: int) -> None:
        """Wait until so many result pixels may join those that wait to be written."""
        with self._making_room:
            while self._waiting and sum(held for _, held in self._waiting) + pixels > _WAITING_PIXELS:
                self._waiting.popleft()[0].result()

    def _write(self, picture: _DecodedPicture, result: Result) -> None:
        start, outcome = perf_counter(), self.outcomes[picture.number]
        outcome = replace(
            outcome,
            estimated=result.estimated,
            applied=result.applied,
            settings=self._own_settings(picture.number),
            bin=result.bin.name if result.bin else None,
            tiles=result.tiles,
        )
        try:
            image = picture.photograph.finish(result.pixels, (picture.sized.width, picture.sized.height))
            notes = save(image, outcome.job.target, self._options.quality)
            if outcome.job.comparison is not None:
                save(before_and_after(picture.photograph, image), outcome.job.comparison)
        except (S3DiffError, MemoryError) as error:
            if _ends_all(outcome.job, error.__cause__):
                self._disk_error = JobError(f"{error}; stopped, and --resume goes on from here")
            reason = str(error) or "out of memory"
            self._settle(picture.number, replace(outcome, status="failed", error=reason))
            return
        seconds = outcome.seconds | result.seconds | {"write": perf_counter() - start}
        self._settle(
            picture.number, replace(outcome, status="done", seconds=seconds, notes=outcome.notes + notes)
        )

    def _settle(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        self._on_outcome(outcome)

    def _raise_disk_error(self) -> None:
        if self._disk_error is not None:
            raise self._disk_error


def _ends_all(job: Job, cause: BaseException | None) -> bool:
    """Whether no other picture can be written either where one could not for this reason."""
    if isinstance(job.target, RemotePath):
        return isinstance(cause, PermissionError | FileNotFoundError)  # expired keys, a bucket that is gone
    return isinstance(cause, OSError) and cause.errno in _DISK_ERRORS
