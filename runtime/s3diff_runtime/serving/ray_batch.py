"""A batch shared out to the workers of a Ray cluster: who does what, and what is done when one is lost."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from s3diff_runtime.batch.jobs import Job
from s3diff_runtime.batch.run import BatchOptions, Outcome
from s3diff_runtime.batch.shares import MOST_LOSSES, Shares
from s3diff_runtime.bundle.fetching import local_bundle, source_of
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import JobError, RequestError, first_line
from s3diff_runtime.remote import Place
from s3diff_runtime.serving.ray import Answer, UpscaleFiles, manifest_hash
from s3diff_runtime.serving.ray_options import CORES, RayOptions
from s3diff_runtime.upscale_options import UpscaleOptions

try:
    import ray
    from ray.exceptions import RayError, RayTaskError
except ModuleNotFoundError as error:
    raise RequestError("ray is not installed: pip install 's3diff-export[ray]'") from error

_MOST_DEATHS = 3
"""Deaths of a worker in a row, before it had opened the bundle, after which it is not started again."""
_MOST_GIVEN_UP = 5
"""Pictures given up in a row, without one done between, that end the batch: it is not their fault."""
_CONNECT_SECONDS = 10.0
_STORE_BYTES = 128 * 2**20
"""Of the object store of a cluster that is started here: pictures do not go through it."""
_logger = logging.getLogger("s3diff_runtime")


@dataclass(frozen=True)
class Resources:
    """How many workers there are, and what each takes of a node."""

    workers: int
    cores: int
    gpus: int = 0

    @classmethod
    def settle(
        cls, nodes: Sequence[Mapping[str, float]], asked: int | None, threads: int | None, device: str
    ) -> Self:
        """Choose so that every worker has its place, and none waits for what another holds.

        Args:
            nodes: what each has, as Ray counts it: `CPU` and `GPU`.
            asked: workers; None for as many as there is room for.
            threads: cores of each; None for `CORES`, or what a node has; where workers are asked for, for as
                many as there is room for.
            device: `cpu`, or `cuda` for a GPU each.

        Raises:
            RequestError: where the cluster has not that much.
        """
        if device != "cpu":
            gpus = sum(int(node.get("GPU", 0)) for node in nodes)
            if (asked or 1) > gpus:
                raise RequestError(f"the cluster has {gpus} GPUs, and {asked or 1} workers need one each")
            return cls(asked or gpus, 1, 1)
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        largest = max(cpus, default=0)

        def room(cores: int) -> int:
            return sum(count // cores for count in cpus)

        cores = threads or (largest if asked else min(CORES, largest)) or 1
        while not threads and cores > 1 and room(cores) < (asked or 1):
            cores -= 1
        if room(cores) < (asked or 1):
            has = ", ".join(map(str, cpus)) or "no"
            raise RequestError(
                f"the cluster has nodes of {has} CPUs, room for {room(cores)} workers of {cores}; "
                f"{asked or 1} {'are' if asked else 'is'} needed"
            )
        return cls(asked or room(cores), cores)


@dataclass
class _Worker:
    """An actor, and what it was given."""

    actor: Any
    opening: Any
    """Reference to its description; None once that came."""
    shares: deque[tuple[Any, tuple[int, ...]]] = field(default_factory=deque)
    """References to answers, with the pictures; it works on the first."""
    deaths: int = 0
    """In a row, before it had opened the bundle."""

    @property
    def awaited(self) -> Any:  # noqa: ANN401 - an ObjectRef
        """What comes from it next; None where it has nothing to do."""
        if self.opening is not None:
            return self.opening
        return self.shares[0][0] if self.shares else None


class Workers:
    """Workers of a Ray cluster, in the place of a `Fleet`. Close it, or use it as a context manager.

    Opened, when the first of them has opened the bundle; the others join a batch as they do.

    Attributes:
        manifest: of the bundle.
        resources: how many workers, of what.
        engine, device, precision: of the workers.

    Args:
        bundle: see `Upscaler.open`; what every machine must have, or fetch.
        engine, device, upscale: of every worker.
        options: which cluster, and how many.

    Raises:
        BundleError: for a damaged bundle.
        RequestError: when no cluster answers, it has not what is asked for, or the bundle does not suit it.
        JobError: when no worker lives until it has opened the bundle.
    """

    def __init__(
        self, bundle: str | Path, engine: str, device: str, upscale: UpscaleOptions, options: RayOptions
    ) -> None:
        folder = local_bundle(bundle)
        self.manifest = Manifest.read(folder)
        self.engine, self.device, self.precision = "", "", ""
        self._hash = manifest_hash(folder)
        self._connected = _connect(options.ray_address)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            self.resources = Resources.settle(nodes, options.workers, upscale.threads, device)
            threads = upscale.threads if self.resources.gpus else self.resources.cores
            self._bundle = str(bundle) if source_of(bundle) else str(folder.absolute())
            self._of_each = engine, device, upscale.but(threads=threads)
            self.team = [_Worker(*self._started()) for _ in range(self.resources.workers)]
            _logger.info("waiting for the first of %d workers", self.resources.workers)
            while all(worker.opening is not None for worker in self.team):
                self.receive()
        except BaseException:
            self.close()
            raise

    @property
    def batch_size(self) -> int:
        """Pictures that a worker computes at once."""
        return self._of_each[2].batch

    def receive(self) -> tuple[_Worker, Answer | RayError | None]:
        """Wait for what comes next from any worker: an answer, or its end; None for one that is ready now.

        A worker that ended is started again, with the shares that it had still in its list.

        Raises:
            BundleError, RequestError: when a worker cannot open the bundle.
            JobError: when none lives until it has.
        """
        awaited = {worker.awaited: worker for worker in self.team if worker.awaited is not None}
        (first,), _ = ray.wait(list(awaited), num_returns=1)
        worker = awaited[first]
        try:
            came = ray.get(first)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._replace(worker, error)
            return worker, error
        if worker.opening is None:
            return worker, came
        worker.opening, worker.deaths = None, 0
        self.engine, device, self.precision = came
        self.device = ",".join([device] * self.resources.workers)
        return worker, None

    def batch(
        self, jobs: Iterable[Job], options: BatchOptions, on_outcome: Callable[[Outcome], None]
    ) -> SharedBatch:
        """The batch that these workers do."""
        return SharedBatch(self, jobs, options, on_outcome)

    def close(self) -> None:
        """Leave the cluster, which stops what was started there; one that was started here ends."""
        if self._connected:
            ray.shutdown()
            return
        for worker in getattr(self, "team", ()):
            ray.kill(worker.actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> tuple[Any, Any]:
        """An actor of `UpscaleFiles`, once the cluster has room, and its description, when it has opened."""
        needs = self.resources
        kind: Any = ray.remote(num_cpus=needs.cores, num_gpus=needs.gpus, max_restarts=0)(UpscaleFiles)
        actor = kind.remote(self._bundle, None, *self._of_each, self._hash)
        return actor, actor.describe.remote()

    def _replace(self, worker: _Worker, error: RayError) -> None:
        _logger.warning("a worker died, and what it had begun is done again: %s", first_line(error))
        worker.deaths += worker.opening is not None
        if worker.deaths >= _MOST_DEATHS:
            self.team.remove(worker)
            if not self.team:
                raise JobError("no worker lives until it has opened the bundle; look into Ray's logs")
        else:
            worker.actor, worker.opening = self._started()


class SharedBatch:
    """Upscales the pictures of a list of jobs on the workers of a cluster; what `Batch` does on one machine.

    A worker that dies is started again. What it had begun is done again by whoever is free, each picture by
    itself; one that takes `MOST_LOSSES` workers along fails. A result is whole or not there, so doing it
    twice costs time alone.

    Attributes, Args: as `Batch` has them, with workers in the place of the fleet.
    """

    def __init__(
        self,
        workers: Workers,
        jobs: Iterable[Job],
        options: BatchOptions,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._workers, self._on_outcome = workers, on_outcome
        each = {_absolute(source): settings for source, settings in options.each.items()}
        self._options = replace(options, each=each)
        self._jobs = iter(jobs)
        self._total = len(jobs) if isinstance(jobs, Sequence) else None
        self._given_up = 0

    def run(self) -> None:
        """Do the jobs. Pictures that cannot be done become failed outcomes.

        When interrupted, workers stop where they are; `--resume` finds what they had finished.

        Raises:
            JobError: when a disk or a store takes no more, or no worker stays alive.
            BundleError, RequestError: when a worker cannot open the bundle.
        """
        shares = Shares(
            self._numbers(), self._workers.batch_size, self._workers.resources.workers, self._total
        )
        options = ray.put(self._options)
        try:
            while not shares.ended:
                for worker in self._workers.team:
                    self._supply(worker, shares, options)
                worker, came = self._workers.receive()
                if isinstance(came, Answer):
                    _, numbers = worker.shares.popleft()
                    shares.done(numbers, came.seconds)
                    self._settle(numbers, came)
                elif came is not None:
                    self._lost(worker, came, shares)
        finally:
            if isinstance(self._jobs, Generator):
                self._jobs.close()  # lists no further
            self.outcomes += map(Outcome, self._jobs)

    def _numbers(self) -> Iterator[int]:
        for number, job in enumerate(self._jobs):
            self.outcomes.append(Outcome(job))
            yield number

    def _supply(self, worker: _Worker, shares: Shares, options: Any) -> None:  # noqa: ANN401 - an ObjectRef
        """Give a worker that has opened the bundle what it does now, and what it does next."""
        while worker.opening is None and (numbers := shares.take([held for _, held in worker.shares])):
            jobs = [_moved(self.outcomes[number].job) for number in numbers]
            worker.shares.append((worker.actor.upscale.remote(jobs, options), numbers))

    def _settle(self, numbers: Sequence[int], answer: Answer) -> None:
        self._given_up = 0
        for number, outcome in zip(numbers, answer.outcomes, strict=True):
            self.outcomes[number] = replace(outcome, job=self.outcomes[number].job)
            if outcome.status != "not done":
                self._on_outcome(self.outcomes[number])
        if answer.error is not None:
            raise answer.error

    def _lost(self, worker: _Worker, error: RayError, shares: Shares) -> None:
        if worker.shares:
            _, begun = worker.shares.popleft()
            for number in shares.lost(begun):
                self._given_up += 1
                reason = f"{MOST_LOSSES} workers died of it, one after the other; see Ray's logs"
                self.outcomes[number] = replace(self.outcomes[number], status="failed", error=reason)
                self._on_outcome(self.outcomes[number])
        for _, unbegun in worker.shares:
            shares.unbegun(unbegun)
        worker.shares.clear()
        if self._given_up >= _MOST_GIVEN_UP:
            raise JobError(f"workers die of whatever they are given: {first_line(error)}; see Ray's logs")


def _moved(job: Job) -> Job:
    """A job as a worker does it, whose working folder is its own."""
    return replace(
        job,
        source=_absolute(job.source),
        target=_absolute(job.target),
        comparison=job.comparison and _absolute(job.comparison),
    )


def _absolute(place: Place) -> Place:
    return place.absolute() if isinstance(place, Path) else place


def _connect(address: str | None) -> bool:
    """Connect this process to a cluster, or to one started for it; False where it was connected already.

    Raises:
        RequestError: when none answers.
    """
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {}
    if address == "local":
        own = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if found := re.fullmatch(r"([^:/]+):(\d+)", address):  # Ray itself would ask for many minutes
            socket.create_connection((found[1], int(found[2])), _CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError among them
        raise RequestError(f"no Ray cluster answers at {address}: {first_line(error)}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process without a report
    return True
