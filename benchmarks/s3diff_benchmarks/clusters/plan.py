"""All of `bench plan`: what a cluster takes for very many pictures, each figure with where it is from."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from s3diff_benchmarks.clusters.simulation import Course, Simulated, simulate
from s3diff_benchmarks.report.findings import BenchmarkRequest, Findings
from s3diff_benchmarks.report.layouts import table
from s3diff_benchmarks.report.model import Cell
from s3diff_benchmarks.report.output import Output
from s3diff_runtime.errors import JobError
from s3diff_runtime.options import group, option

_RUNS = 3
_LISTED = 1000
"""Names in the answer to a request of a listing, at most (S3's ListObjectsV2)."""
_PREFIX_WRITES = 3500
"""That S3 promises a second, for a prefix that it has not spread yet."""
_GIVEN = (
    ("pictures", "pictures", "", "assumed"),
    ("nodes", "nodes", "", "assumed"),
    ("GPUs of a node", "gpus", "", "assumed"),
    ("time of a picture on a GPU", "seconds", "s", "published: the paper's Table 3, on an A100"),
    ("an input", "input_kb", "kB", "measured: mean of 20 RealSR inputs of 128x128 as PNG"),
    ("a result", "output_kb", "kB", "measured: mean of the small model's results for them, as PNG"),
    ("network of a node", "gigabits", "Gbit/s", "assumed"),
    ("between losses of a node", "days_between", "days", "assumed: of spot machines"),
    ("until a lost worker works again", "restart", "s",
     "assumed: a new node, Python, and a bundle of 3 GB fetched"),
    ("pictures that kill their worker", "poisoned", "of all", "assumed"),
    ("an hour of a node", "node_price", "$", "assumed"),
    ("1000 writes or listings", "put_price", "$", "assumed: S3 Standard's list price"),
    ("1000 reads", "get_price", "$", "assumed: S3 Standard's list price"),
)  # fmt: skip
"""What, the option that says how much, its unit, and where the usual value is from."""


@dataclass(frozen=True)
class PlanRequest(BenchmarkRequest):
    """What is planned."""

    pictures: int = option(10_000_000, "How many.", least=1, most=100_000_000)
    nodes: int = option(8, "Machines.", least=1, most=1000)
    gpus: int = option(8, "Of a node; a worker each.", least=1, most=64)
    seconds: float = option(0.62, "Of a GPU for a picture: `bench latency`, or throughput.", above=0)
    batch: int = option(4, "Pictures that a worker computes at once.", least=1)
    spread: float = option(
        0.2, "Standard deviation of the logarithm of the time of a share.", least=0, most=2
    )
    input_kb: float = option(32.0, "Of a picture, in kB.", above=0)
    output_kb: float = option(286.0, "Of a result, in kB.", above=0)
    gigabits: float = option(10.0, "Network of a node, Gbit/s.", above=0)
    days_between: float = option(20.0, "Between two losses of a node, on average.", above=0)
    restart: float = option(300.0, "Seconds until a lost worker's successor has opened the bundle.", least=0)
    poisoned: float = option(1e-6, "Fraction of the pictures that kill their worker.", least=0, most=0.01)
    node_price: float = option(20.0, "Of a node, dollars an hour.", least=0)
    put_price: float = option(0.005, "Of 1000 requests that write or list, dollars.", least=0)
    get_price: float = option(0.0004, "Of 1000 requests that read, dollars.", least=0)
    seed: int = option(0, "Of the simulation.", least=0)
    output: Output = group(Output)

    @property
    def subject(self) -> str:
        """What the report's title names."""
        return f"{self.pictures:,} pictures on {self.nodes} nodes"


def run_plan(request: PlanRequest) -> Findings:
    """Reckon what a cluster takes for many pictures of a bucket; run the scheduler of `upscale --ray`.

    Every figure says where it is from: measured, published, assumed, or given. The scheduler runs on paper,
    against workers that die; the simulation holds it to one end for each picture.

    \b
      s3diff-export bench plan --pictures 10000000 --nodes 8 --gpus 8 --seconds 0.31
    """
    workers = request.nodes * request.gpus
    ideal = request.pictures * request.seconds / workers
    courses = [simulate(_simulated(request, workers), request.seed + run) for run in range(_RUNS)]
    for course in courses:
        wrong = sum(ends != 1 for ends in course.results)
        if wrong:
            raise JobError(f"the scheduler lost or repeated {wrong} pictures; this is a bug")
    seconds = median(course.seconds for course in courses)
    rows = [*_given(request), *_reckoned(request, workers, ideal, seconds)]
    ran = [_row(number, course, ideal, workers) for number, course in enumerate(courses, start=1)]
    tables = (table("plan", rows), table("plan-runs", ran))
    return Findings(tables, notes=tuple(_limits(request, workers)))


def _simulated(request: PlanRequest, workers: int) -> Simulated:
    return Simulated(
        pictures=request.pictures,
        workers=workers,
        seconds=request.seconds,
        spread=request.spread,
        between_deaths=request.days_between * 86400,
        restart=request.restart,
        poisoned=request.poisoned,
        batch=request.batch,
    )


def _given(request: PlanRequest) -> Iterator[tuple[Cell, ...]]:
    for what, name, unit, source in _GIVEN:
        yield what, float(getattr(request, name)), unit, "given" if name in request.given else source


def _reckoned(request: PlanRequest, workers: int, ideal: float, seconds: float) -> Iterator[tuple[Cell, ...]]:
    rate = request.pictures / seconds
    of_node = rate / request.nodes
    reads, listings = request.pictures, 2 * (request.pictures / _LISTED)
    requests = (request.pictures + listings) * request.put_price + reads * request.get_price
    nodes = request.nodes * seconds / 3600 * request.node_price
    yield "time without losses", ideal / 3600, "h", "reckoned: pictures × time / GPUs"
    yield "time", seconds / 3600, "h", f"simulated: median of {_RUNS} runs"
    yield "rate", rate, "pictures/s", "reckoned from the simulated time"
    yield "a node reads", of_node * request.input_kb * 8e-6, "Gbit/s", "reckoned"
    yield "a node writes", of_node * request.output_kb * 8e-6, "Gbit/s", "reckoned"
    yield "reads of the store", reads / seconds, "1/s", "one GET a picture: counted in the tests"
    yield "writes of the store", rate, "1/s", "one PUT a picture: counted in the tests"
    yield "listings", listings, "requests", "reckoned: in and out, 1000 names each"
    yield "results", request.pictures * request.output_kb / 1e9, "TB", "reckoned"
    yield "cost of nodes", nodes, "$", "reckoned"
    yield "cost of requests", requests / 1000, "$", "reckoned"
    yield "cost of 1000 pictures", (nodes + requests / 1000) / request.pictures * 1000, "$", "reckoned"


def _row(number: int, course: Course, ideal: float, workers: int) -> tuple[Cell, ...]:
    return (
        number,
        course.seconds / 3600,
        course.seconds / ideal,
        100 * course.busy / (course.seconds * workers),
        course.deaths,
        course.repeated,
        course.failed,
        sum(ends == 1 for ends in course.results),
    )


def _limits(request: PlanRequest, workers: int) -> Iterator[str]:
    """What would hold the GPUs up."""
    of_node = request.gpus / request.seconds
    needed = of_node * (request.input_kb + request.output_kb) * 8e-6
    if needed > request.gigabits:
        yield f"A node's network holds its GPUs up: they need {needed:.3g} Gbit/s of {request.gigabits:.3g}."
    rate = workers / request.seconds
    if rate > _PREFIX_WRITES:
        yield (
            f"{rate:.0f} writes a second are more than the {_PREFIX_WRITES} that S3 promises a prefix from "
            "the start; spread the results over several folders, or begin with fewer workers."
        )
