"""All of `bench latency`: opens what is timed, times it, and puts the findings together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.methods import BundleMethod, Method, open_bundles
from s3diff_benchmarks.pictures.drawn import given_or_drawn
from s3diff_benchmarks.published import table3
from s3diff_benchmarks.report.findings import BundlesRequest, Findings
from s3diff_benchmarks.report.model import Table
from s3diff_benchmarks.report.output import Output
from s3diff_benchmarks.speed.ceilings import Ceilings, measure_ceilings
from s3diff_benchmarks.speed.cold_start import Task, cold_start_table, measure_cold_start
from s3diff_benchmarks.speed.flops import bundle_work
from s3diff_benchmarks.speed.latency import Case, Sampling, Timings, measure, picture_of
from s3diff_benchmarks.speed.latency_report import (
    Works,
    agreement_table,
    latency_table,
    plots,
    roofline,
    stage_table,
    table3_seconds,
)
from s3diff_benchmarks.speed.meters import gpu_meter
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import group, option
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.progress import counted
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.weights import ModelSource

_CEILING_SECONDS = 6.0
_WITHOUT_PYTORCH = "PyTorch was not timed: pass --demo, or --base and --checkpoint"


@dataclass(frozen=True)
class LatencyRequest(BundlesRequest):
    """What is timed, and for how long."""

    engines: tuple[str, ...] = option(
        ("auto",), "onnx, tensorrt, tensorrt-rtx, auto, or several with commas.", flags=("--engine",)
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.")
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
    threads: int | None = option(None, "Of the CPU; its cores by default.", least=1)
    seconds: float = option(
        60.0, "For all rounds; less where the medians are settled within 2 % before.", above=0
    )
    warm_up: int = option(2, "Runs of each before any counts.", least=0)
    cold_starts: int = option(
        3, "New processes for the time to the first image and the memory; 0 leaves them out.", least=0
    )
    weights: ModelSource = group(ModelSource)
    output: Output = group(Output)

    @property
    def cases(self) -> list[Case]:
        """Every size with every batch, once."""
        return list(dict.fromkeys(Case(side, batch) for side in self.sizes for batch in self.batches))


def run_latency(request: LatencyRequest) -> Findings:
    """Measure everything that was asked for; with weights, the network in PyTorch runs beside.

    Raises:
        RequestError, BundleError, JobError: see `Upscaler`.
    """
    image = given_or_drawn(request.image)
    options = UpscaleOptions(tile=0, batch=max(request.batches), threads=request.threads)
    with ExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory()))
        found = open_bundles(request.bundles, request.engines, request.device, options, opened)
        notes, fitting = list(found.notes), []
        for case in request.cases:
            try:
                for method in found.methods:
                    method.upscaler.check_size(case.side, case.side)
                fitting.append(case)
            except RequestError as error:
                notes.append(f"{case.side} pixels were not measured: {error}")
        if not fitting:
            raise RequestError(notes[-1])
        baselines, trainable, pytorch_notes = _baselines(request, image)
        methods: list[Method] = [*found.methods, *baselines]
        meter = opened.enter_context(gpu_meter(request.device))
        sampling = Sampling(request.seconds, request.warm_up)
        with counted(1.0, "latency") as tell:
            timings = measure(methods, fitting, image, sampling, folder, meter, tell)
        works = _works(found.methods, fitting)
    ceilings, ceiling_notes = _ceilings(request, found.methods[0])
    seconds = table3_seconds(timings)
    ours = seconds.pop(found.methods[0].name, None)
    tables = [
        latency_table(timings),
        stage_table(timings, works, ceilings),
        *_agreement(timings, [method.name for method in (baselines or methods[:1])]),
        *_cold_starts(request, found.methods, bool(baselines), image),
        table3(ours, describe_machine().name, trainable, seconds),
    ]
    drawn = list(plots(timings))
    if ceilings:
        tables.append(ceilings.table())
        drawn.append(roofline(timings, found.methods[0].name, ceilings))
    return Findings(
        tables=tuple(tables),
        plots=tuple(drawn),
        notes=(*notes, *pytorch_notes, *ceiling_notes, *_energy_notes(timings, request.device)),
    )


def _baselines(request: LatencyRequest, image: Pixels) -> tuple[list[Method], float | None, list[str]]:
    """PyTorch both ways, the millions of parameters that training changes, and notes."""
    if not request.weights.named:
        return [], None, [_WITHOUT_PYTORCH]
    import torch

    from s3diff_benchmarks.speed.baselines import released, trainable_millions, tuned

    if request.threads:
        torch.set_num_threads(request.threads)
    network = request.weights.load()
    trainable = trainable_millions(network)
    if request.device != "cpu" and not torch.cuda.is_available():
        return [], trainable, ["PyTorch was not timed: the installed torch serves no GPU"]
    network.to(request.device)
    how = "fp32" if request.device == "cpu" else "fp16, compiled"
    note = (
        "PyTorch as released: fp32, the prompts one after the other, LoRA as branches. PyTorch tuned: "
        f"{how}, both prompts in one batch, LoRA merged. Both without sampling, prompts encoded before"
    )
    return [released(network), tuned(network, picture_of(image, min(request.sizes)))], trainable, [note]


def _works(methods: Sequence[BundleMethod], cases: Sequence[Case]) -> Works:
    return {
        (method.name, case): bundle_work(
            method.folder, method.upscaler.manifest, case.batch, case.side, case.side
        )
        for method in methods
        for case in cases
    }


def _ceilings(request: LatencyRequest, method: BundleMethod) -> tuple[Ceilings | None, list[str]]:
    precision = method.upscaler.manifest.precision
    try:
        seconds = min(_CEILING_SECONDS, request.seconds / 4)
        return measure_ceilings(request.device, precision, request.threads, seconds), []
    except RequestError as error:
        return None, [f"the machine's ceilings were not measured: {error}"]


def _cold_starts(
    request: LatencyRequest, methods: Sequence[BundleMethod], pytorch: bool, image: Pixels
) -> Iterator[Table]:
    """A table of new processes, where some were asked for."""
    if not request.cold_starts:
        return
    with TemporaryDirectory() as folder:
        source = Path(folder) / "input.png"
        save(Image.fromarray(picture_of(image, request.sizes[0])), source)
        tasks = [
            Task(
                method.name,
                request.device,
                str(source),
                bundle=str(method.folder.resolve()),
                engine=method.upscaler.engine,
                threads=request.threads,
            )
            for method in methods
        ]
        if pytorch:
            source_of = request.weights.settled()
            estimator = str(source_of.estimator) if source_of.estimator else None
            files = (str(source_of.base), str(source_of.checkpoint), estimator)
            tasks.append(
                Task(
                    "PyTorch as released", request.device, str(source), threads=request.threads, weights=files
                )
            )
        with counted(len(tasks), "latency") as tell:
            found = {}
            for number, task in enumerate(tasks):
                tell(number, f"new processes: {task.name}")
                found[task.name] = measure_cold_start(task, request.cold_starts)
    yield cold_start_table(found, request.cold_starts)


def _agreement(timings: Sequence[Timings], references: Sequence[str]) -> Iterator[Table]:
    """A table, where there is anything to compare."""
    table = agreement_table(timings, references)
    if table.rows:
        yield table


def _energy_notes(timings: Sequence[Timings], device: str) -> Iterator[str]:
    if device == "cpu":
        yield "energy was not measured: NVML counts it for GPUs"
    elif not any(timing.joules for timing in timings):
        yield "energy was not measured: NVML has no counter of this GPU"
