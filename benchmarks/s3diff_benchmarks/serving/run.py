"""All of `bench serve`: the service at twice what it can do, and under attack."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryFile
from time import perf_counter, sleep

from s3diff_benchmarks.pictures.pixels import given_or_drawn, square_of
from s3diff_benchmarks.report.findings import BundleRequest, Findings
from s3diff_benchmarks.report.layouts import table
from s3diff_benchmarks.report.model import Cell
from s3diff_benchmarks.serving.faults import (
    MOST_BYTES,
    encodings,
    half_sent,
    killed,
    large_bodies,
    mutated_pictures,
)
from s3diff_benchmarks.serving.process import LOST, ServiceProcess, Tally, service, watched_memory
from s3diff_benchmarks.speed.load import closed_loop
from s3diff_benchmarks.statistics import Summary
from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.errors import JobError
from s3diff_runtime.options import option
from s3diff_runtime.progress import Counted, counted

_OVERLOAD = 2.0
_REQUESTS_A_SECOND_OF_TRIAL = 1000
_SPARE_CALLERS = 48
"""Beyond the places of the service, so that arrivals need not wait for a caller."""


@dataclass(frozen=True)
class ServeBenchRequest(BundleRequest):
    """What the service is made to bear."""

    engine: str = option("auto", ENGINE_HELP)
    size: int = option(32, "Side of the square inputs.", least=8, most=1024)
    image: Path | None = option(None, "Photograph to upscale, cut to size; drawn by default.")
    queue: int = option(16, "Places of the service.", least=1)
    requests: int = option(10_000, "At twice what it can do.", least=100)
    timeout: float = option(20.0, "Of the service, in seconds.", least=1)
    mutated: int = option(5000, "Damaged pictures that are sent.", least=10)
    connections: int = option(200, "Heads and bodies that are sent by half.", least=2, most=900)
    bodies: int = option(16, "Bodies of 100 MiB that are sent.", least=1)
    threads: int | None = option(None, "Of the CPU; its cores by default.", least=1)


def run_serve_bench(request: ServeBenchRequest) -> Findings:
    """Load, faults and attacks on `s3diff-export serve BUNDLE`, which runs as a process of its own.

    What callers that wait are served tells what it can do; then requests arrive at twice that rate, and each
    must be answered: 200 or 503. Then it gets damaged pictures, half-sent requests and bodies over its limit,
    is killed under load, and started again.

    Raises:
        JobError: when the service does not start, hangs, or ends by itself.
    """
    pixels = square_of(given_or_drawn(request.image), request.size)
    picture = encodings(pixels)[0]
    with ExitStack() as running, TemporaryFile("w") as log, counted(1.0, "serve") as tell:

        def start() -> ServiceProcess:
            return running.enter_context(service(request.bundle, log, _options(request)))

        first = start()
        tell(0.0, "load")
        row = _load(first, picture, request, tell)

        callers = max(request.queue // 2, 1)  # a place is free again a little after the answer

        def tell_mutated(done: int) -> None:
            tell(0.6 + 0.3 * done / request.mutated, "mutated pictures")

        faults = [mutated_pictures(first, pixels, request.mutated, callers, tell_mutated)]
        tell(0.9, "half-sent requests")
        faults.append(half_sent(first, picture, request.connections))
        tell(0.93, "large bodies")
        faults.append(large_bodies(first, request.bodies, 100))
        tell(0.96, "kill -9")
        faults += killed(first, picture, 10 * request.queue, start)
    return Findings(
        tables=(table("service-load", [row]), table("service-faults", map(astuple, faults))),
        notes=tuple(
            f"{fault.name}: not as it must be: {fault.outcome}" for fault in faults if not fault.borne
        ),
    )


def _options(request: ServeBenchRequest) -> list[str]:
    names = ("queue", "timeout", "engine", "device", "threads")
    asked = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
    asked["max-bytes"] = MOST_BYTES
    return [text for name, value in asked.items() for text in (f"--{name}", str(value))]


def _load(
    running: ServiceProcess, picture: bytes, request: ServeBenchRequest, tell: Counted
) -> tuple[Cell, ...]:
    """Find out what the service can do, and offer it twice that."""
    trial = max(min(request.requests / _REQUESTS_A_SECOND_OF_TRIAL, 10.0), 1.0)
    able = closed_loop(lambda: running.ask(picture), request.queue, trial)
    tally, rate = Tally(), _OVERLOAD * able.served

    start = perf_counter()

    def arrive(number: int) -> None:
        sleep(max(start + number / rate - perf_counter(), 0.0))
        tally.ask(running, picture)
        tell(0.6 * tally.total / request.requests, f"{rate:.3g} arrivals per second")

    callers = ThreadPoolExecutor(request.queue + _SPARE_CALLERS)
    with watched_memory(running) as memory, callers:
        list(callers.map(arrive, range(request.requests)))
    seconds = perf_counter() - start
    running.require_alive()
    if not tally.accepted:
        raise JobError(f"the service accepted nothing: {tally}")
    tenth = max(len(memory) // 10, 1)
    waits = Summary.of(tally.accepted)
    other = tally.total - tally.statuses[200] - tally.statuses[503] - tally.statuses[LOST]
    return (
        tally.total,
        able.served,
        rate,
        tally.statuses[200],
        tally.statuses[503],
        other,
        tally.statuses[LOST],
        waits.median,
        waits.p99,
        request.queue * seconds / tally.statuses[200],
        tally.slowest_refusal,
        fmean(memory[:tenth]),
        fmean(memory[-tenth:]),
    )
