"""All of `bench latency`: opens what is timed, times it, and puts the findings together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.methods import RELEASED, BundleMethod, Method, open_bundles
from s3diff_benchmarks.pictures.pixels import NOTE, differences, given_or_drawn, square_of
from s3diff_benchmarks.published import table3
from s3diff_benchmarks.report.findings import BundlesRequest, Findings
from s3diff_benchmarks.report.layouts import plot, table
from s3diff_benchmarks.report.model import Cell, Plot, Table
from s3diff_benchmarks.speed.ceilings import Ceilings, measure_ceilings
from s3diff_benchmarks.speed.cold_start import ColdStart, Task, measure_cold_start
from s3diff_benchmarks.speed.flops import Work, bundle_work
from s3diff_benchmarks.speed.latency import CALL, END_TO_END, Case, Timings, measure
from s3diff_benchmarks.speed.meters import gpu_meter
from s3diff_benchmarks.statistics import Summary
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import group, option
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.progress import counted
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.vocabulary import Pixels

_CEILING_SECONDS = 6.0
_SECONDS = ("least", "median", "low", "high", "p95", "p99")
Works = Mapping[tuple[str, Case], Mapping[str, Work]]
"""Of every stage, by method and case."""


@dataclass(frozen=True)
class LatencyRequest(BundlesRequest):
    """What is timed, and for how long."""

    engines: tuple[str, ...] = option(
        ("auto",),
        f"Several with commas of {ENGINE_HELP}",
        flags=("--engine",),
    )
    sizes: tuple[int, ...] = option(
        (128,),
        "Sides of the square inputs, in pixels, with commas; the results have four times as many.",
        flags=("--size",),
        least=8,
        most=4096,
    )
    batches: tuple[int, ...] = option(
        (1,), "Images in a call, with commas.", flags=("--batch",), least=1, most=256
    )
    image: Path | None = option(None, "Photograph to upscale, cut to size; drawn by default.")
    cpu: CpuOptions = group(CpuOptions)
    seconds: float = option(
        60.0, "For all rounds; less where the medians are settled within 2 % before.", above=0
    )
    warm_up: int = option(2, "Runs of each before any counts.", least=0)
    cold_starts: int = option(
        3, "New processes for the time to the first image and the memory; 0 leaves them out.", least=0
    )

    @property
    def cases(self) -> list[Case]:
        """Every size with every batch, once."""
        return list(dict.fromkeys(Case(side, batch) for side in self.sizes for batch in self.batches))


def run_latency(request: LatencyRequest) -> Findings:
    """Time BUNDLE: seconds for one call, by stage, and what it achieves of this machine.

    Engines, other bundles and, where weights are named, PyTorch (as released, and tuned) run in the same
    rounds, in an order drawn anew each time, so that drift hits all alike. Images are never cut into
    tiles. The paper's Table 3 stands beside; ratios only between what this run measured.

    \b
      s3diff-export bench latency s3diff.bundle --size 128,256 --batch 1,4 -o latency
      s3diff-export bench latency s3diff.bundle --engine onnx,tensorrt --device cuda --demo
    """
    image = given_or_drawn(request.image)
    options = UpscaleOptions(**asdict(request.cpu), tile=0, batch=max(request.batches))
    with TemporaryDirectory() as folder:
        with (
            open_bundles(request.bundles, request.engines, request.device, options) as (bundles, notes),
            gpu_meter(request.device) as meter,
            counted(1.0, "latency") as tell,
        ):
            cases = _fitting(request.cases, bundles, notes)
            baselines, trainable = _baselines(request, image, notes)
            timings = measure(
                [*bundles, *baselines],
                cases,
                image,
                Path(folder),
                seconds=request.seconds,
                warm_up=request.warm_up,
                counter=meter.joules,
                progress=tell,
            )
        picture = square_of(image, cases[0].side)
        cold_starts = _cold_starts(request, bundles, bool(baselines), picture, Path(folder))
    works = {
        (each.name, case): bundle_work(each.folder, each.upscaler.manifest, case.batch, case.side, case.side)
        for each, case in product(bundles, cases)
    }
    ceilings = _ceilings(request, bundles[0], notes)
    seconds = table3_seconds(timings)
    ours = seconds.pop(bundles[0].name, None)
    references: Sequence[Method] = baselines or bundles[:1]
    tables = [
        latency_table(timings),
        stage_table(timings, works, ceilings),
        agreement_table(timings, [method.name for method in references]),
        cold_start_table(cold_starts, request.cold_starts),
        table3(ours, describe_machine().name, trainable, seconds),
    ]
    drawn = list(plots(timings))
    if ceilings:
        tables.append(ceilings.table())
        drawn.append(roofline(timings, bundles[0].name, ceilings))
    notes += _energy_notes(timings, request.device)
    return Findings(tuple(each for each in tables if each.rows), tuple(drawn), notes=tuple(notes))


def _fitting(cases: Sequence[Case], bundles: Sequence[BundleMethod], notes: list[str]) -> list[Case]:
    """The cases whose size all bundles take; notes the others.

    Raises:
        RequestError: when there is none.
    """
    fitting = []
    for case in cases:
        try:
            for bundle in bundles:
                bundle.upscaler.check_size(case.side, case.side)
            fitting.append(case)
        except RequestError as error:
            notes.append(f"{case.side} pixels were not measured: {error}")
    if not fitting:
        raise RequestError(notes[-1])
    return fitting


def _baselines(request: LatencyRequest, image: Pixels, notes: list[str]) -> tuple[list[Method], float | None]:
    """PyTorch both ways, and the millions of parameters that training changes; notes what these are."""
    if not request.weights.named:
        notes.append("PyTorch was not timed: pass --demo, or --base and --checkpoint")
        return [], None
    import torch

    from s3diff_benchmarks.pytorch_method import released, trainable_millions, tuned, tuned_dtype

    if request.cpu.threads:
        torch.set_num_threads(request.cpu.threads)
    network = request.weights.load()
    trainable = trainable_millions(network)
    if request.device != "cpu" and not torch.cuda.is_available():
        notes.append("PyTorch was not timed: the installed torch serves no GPU")
        return [], trainable
    network.to(request.device)
    dtype = tuned_dtype(torch.device(request.device), request.cpu.cpu_precision)
    how = f"{dtype}, {'channels last' if request.device == 'cpu' else 'compiled'}".removeprefix("torch.")
    notes.append(
        "PyTorch as released: fp32, the prompts one after the other, LoRA as branches. PyTorch tuned: "
        f"{how}, both prompts in one batch, LoRA merged. Both without sampling, prompts encoded before"
    )
    return [released(network), tuned(network, square_of(image, min(request.sizes)), dtype)], trainable


def _ceilings(request: LatencyRequest, method: BundleMethod, notes: list[str]) -> Ceilings | None:
    precision, seconds = method.upscaler.manifest.precision, min(_CEILING_SECONDS, request.seconds / 4)
    try:
        return measure_ceilings(request.device, precision, request.cpu.threads, seconds)
    except RequestError as error:
        notes.append(f"the machine's ceilings were not measured: {error}")
        return None


def _cold_starts(
    request: LatencyRequest, bundles: Sequence[BundleMethod], pytorch: bool, picture: Pixels, folder: Path
) -> dict[str, ColdStart]:
    """What new processes take, by method; none where none were asked for."""
    if not request.cold_starts:
        return {}
    source = folder / "cold-start.png"
    save(Image.fromarray(picture), source)
    device, cpu = request.device, request.cpu
    tasks = [Task(each.name, each.folder, source, device, cpu, each.upscaler.engine) for each in bundles]
    if pytorch:
        tasks.append(Task(RELEASED, request.weights, source, device, cpu))
    found = {}
    with counted(len(tasks), "latency") as tell:
        for number, task in enumerate(tasks):
            tell(number, f"new processes: {task.name}")
            found[task.name] = measure_cold_start(task, request.cold_starts)
    return found


def _energy_notes(timings: Sequence[Timings], device: str) -> Iterator[str]:
    if device == "cpu":
        yield "energy was not measured: NVML counts it for GPUs"
    elif not any(timing.joules for timing in timings):
        yield "energy was not measured: NVML has no counter of this GPU"


# --- tables and plots ------------------------------------------------------------------------------


def latency_table(timings: Sequence[Timings]) -> Table:
    """Seconds of every method and case, beside the first method's in the same case."""
    first = {timing.case: Summary.of(timing.calls).median for timing in reversed(timings)}
    rows: list[tuple[Cell, ...]] = []
    for timing in timings:
        batch = timing.case.batch
        joules = sum(timing.joules) / len(timing.joules) / batch if timing.joules else None
        for part, samples in ((CALL, timing.calls), (END_TO_END, timing.whole)):
            summary = Summary.of(samples)
            seconds = [getattr(summary, name) for name in _SECONDS]
            of_call = (summary.median / first[timing.case], joules) if part == CALL else (None, None)
            key = (timing.method, *astuple(timing.case), part)
            rows.append((*key, summary.count, *seconds, batch / summary.median, *of_call))
    return table("latency", rows)


def stage_table(timings: Sequence[Timings], works: Works, ceilings: Ceilings | None) -> Table:
    """Median seconds of every stage, then of the call, and what they achieve of the machine's ceiling."""
    rows: list[tuple[Cell, ...]] = []
    for timing in timings:
        whole = Summary.of(timing.whole).median
        stages = works.get((timing.method, timing.case), {})
        known = {**stages, CALL: Work.of_all(stages.values())}
        for stage, samples in {**timing.stages, CALL: timing.calls}.items():
            seconds = Summary.of(samples).median
            key = (timing.method, *astuple(timing.case), stage)
            achieved = _achieved(known.get(stage), seconds, ceilings)
            rows.append((*key, seconds, 100 * seconds / whole, *achieved))
    return table("stages", rows)


def agreement_table(timings: Sequence[Timings], references: Sequence[str]) -> Table:
    """How far the methods' images are from each other: times of different results do not compare.

    The methods that `references` names are those that the others are held against.
    """
    rows: list[tuple[Cell, ...]] = []
    for one, other in permutations(timings, 2):
        comparable = other.method in references and other.case == one.case
        if comparable and one.image is not None and other.image is not None:
            error, psnr, _, largest = differences([(one.image, other.image)])
            rows.append((one.method, other.method, *astuple(one.case), error, psnr, largest))
    return table("agreement", rows, differences=NOTE)


def cold_start_table(found: Mapping[str, ColdStart], times: int) -> Table:
    """New processes: one row for each method."""
    rows = ((name, one.ready, *astuple(one)) for name, one in found.items())
    return table("cold-start", rows, times=times)


def plots(timings: Sequence[Timings]) -> Iterator[Plot]:
    """Time by stage, time by method, and images per second by batch where several were measured."""
    first = timings[0].case
    yield plot("methods")
    shown = {"size": first.side, "batch": first.batch, "stage": _stages(timings)}
    yield plot("stages", {"where": shown}, case=first.label)
    if len({timing.case.batch for timing in timings if timing.case.side == first.side}) > 1:
        yield plot("batches", {"where": {"size": first.side, "part": CALL}}, side=first.side)


def roofline(timings: Sequence[Timings], method: str, ceilings: Ceilings) -> Plot:
    """The stages of one method, in every case, by their intensity, below the machine's ceilings."""
    where = {"method": method, "stage": _stages(timings)}
    return plot("roofline", {"where": where}, precision=ceilings.precision, device=ceilings.device)


def table3_seconds(timings: Sequence[Timings]) -> dict[str, float]:
    """Each method's median call for one image, 128→512; empty where that was not measured."""
    return {
        timing.method: Summary.of(timing.calls).median for timing in timings if timing.case == Case(128, 1)
    }


def _stages(timings: Sequence[Timings]) -> tuple[str, ...]:
    """All, without the call that they make up."""
    return tuple(dict.fromkeys(stage for timing in timings for stage in timing.stages))


def _achieved(work: Work | None, seconds: float, ceilings: Ceilings | None) -> tuple[Cell, ...]:
    if work is None or not work.flops or not seconds:
        return None, None, None, None, None
    rate = work.flops / seconds
    roofs = (ceilings.flops, ceilings.at(work.intensity)) if ceilings else (None, None)
    shares = [roof and 100 * rate / roof for roof in roofs]
    return work.flops / 1e12, work.intensity, rate / 1e12, *shares
