"""Joins pictures that wait for the network into batches, and runs them on the upscalers of a fleet."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import perf_counter

from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.engines.interface import LANES
from s3diff_runtime.errors import JobError
from s3diff_runtime.restoration import Progress
from s3diff_runtime.settings import PictureSettings
from s3diff_runtime.upscaler import Result, Upscaler
from s3diff_runtime.vocabulary import Pixels


class AbandonedJob(JobError):
    """Nobody waits for the result any more."""

    def __init__(self) -> None:
        super().__init__("nobody waited for the picture any more")


@dataclass(eq=False)
class Job:
    """A picture that waits for the network, or is in it."""

    pixels: Pixels
    settings: PictureSettings
    progress: Progress
    """Told when the network begins (0 of 1), and of every tile, if the picture runs alone."""
    submitted: float = field(default_factory=perf_counter)
    taken: float | None = None
    """When the network began."""
    abandoned: bool = False
    result: Future[Result] = field(default_factory=Future)

    @property
    def seconds_queued(self) -> float:
        """How long it waited for the network."""
        return (self.taken or perf_counter()) - self.submitted


class Collector:
    """Threads that take jobs in their order, each with later ones that can run in its batch.

    As many threads work on each upscaler as it has lanes. Nothing waits for company: batches form while the
    threads are busy. How much may wait is for callers to bound.

    Args:
        fleet: the open upscalers.
        on_batch: told, from any thread, the size of every batch that begins.
    """

    def __init__(self, fleet: Fleet, on_batch: Callable[[int], None]) -> None:
        self._waiting: deque[Job] = deque()
        self._changed, self._closed = Condition(), False
        self._on_batch = on_batch
        self._threads = [
            Thread(target=self._work, args=(upscaler,), name=f"network-{upscaler.device}-{lane}", daemon=True)
            for upscaler in fleet.upscalers
            for lane in range(LANES)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        pixels: Pixels,
        settings: PictureSettings,
        progress: Progress = lambda done, total: None,
    ) -> Job:
        """Queue a picture, uint8 RGB `[H, W, 3]`; `result` of the job gives what `upscale_pixels` gives."""
        job = Job(pixels, settings, progress)
        job.result.set_running_or_notify_cancel()  # from here on nobody else ends it
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def abandon(self, job: Job) -> None:
        """Nobody waits for it: it is never begun; one that was begun ends after its next batch of tiles."""
        with self._changed:
            job.abandoned = True
            if job in self._waiting:
                self._waiting.remove(job)
                job.result.set_exception(AbandonedJob())

    def close(self) -> None:
        """Finish what was begun or waits, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, upscaler: Upscaler) -> None:
        while jobs := self._taken(upscaler):
            self._on_batch(len(jobs))
            self._finish(upscaler, jobs)
            del jobs  # the pixels, while this thread waits for more

    def _finish(self, upscaler: Upscaler, jobs: Sequence[Job]) -> None:
        """Upscale a batch; when it fails, its pictures are tried one by one."""
        try:
            results = self._upscaled(upscaler, jobs)
        except BaseException as error:  # whatever it is, somebody waits for an answer
            if len(jobs) == 1:
                jobs[0].result.set_exception(error)
            else:
                for job in jobs:
                    self._finish(upscaler, [job])
        else:
            for job, result in zip(jobs, results, strict=True):
                job.result.set_result(result)

    def _taken(self, upscaler: Upscaler) -> list[Job]:
        """The job that waits longest, with its company; none when the collector closes and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            jobs = [self._waiting.popleft()]
            shared = _companions(upscaler, jobs[0])
            others = [job for job in self._waiting if shared and _companions(upscaler, job) == shared]
            for job in others[: upscaler.options.batch - 1]:
                self._waiting.remove(job)
                jobs.append(job)
        for job in jobs:
            job.taken = perf_counter()
            job.progress(0, 1)
        return jobs

    def _upscaled(self, upscaler: Upscaler, jobs: Sequence[Job]) -> list[Result]:
        def progress(done: int, total: int) -> None:
            if all(job.abandoned for job in jobs):
                raise AbandonedJob()
            if len(jobs) == 1:
                jobs[0].progress(done, total)

        each = [job.settings.keywords for job in jobs]
        return upscaler.upscale_pixels([job.pixels for job in jobs], each, progress)


def _companions(upscaler: Upscaler, job: Job) -> object:
    return upscaler.companions(job.pixels.shape[0], job.pixels.shape[1], job.settings)
