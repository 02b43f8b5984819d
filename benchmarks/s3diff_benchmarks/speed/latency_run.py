"""All of `bench latency`: opens what is timed, times it, and puts the findings together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.methods import RELEASED, BundleMethod, Method, open_bundles
from s3diff_benchmarks.pictures.pixels import given_or_drawn, square_of
from s3diff_benchmarks.published import table3
from s3diff_benchmarks.report.findings import BundlesRequest, Findings
from s3diff_benchmarks.speed import latency_report
from s3diff_benchmarks.speed.ceilings import Ceilings, measure_ceilings
from s3diff_benchmarks.speed.cold_start import ColdStart, Task, measure_cold_start
from s3diff_benchmarks.speed.flops import bundle_work
from s3diff_benchmarks.speed.latency import Case, Timings, measure
from s3diff_benchmarks.speed.meters import gpu_meter
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import option
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.progress import counted
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.vocabulary import Pixels

_CEILING_SECONDS = 6.0
_WITHOUT_PYTORCH = "PyTorch was not timed: pass --demo, or --base and --checkpoint"


@dataclass(frozen=True)
class LatencyRequest(BundlesRequest):
    """What is timed, and for how long."""

    engines: tuple[str, ...] = option(
        ("auto",), "onnx, tensorrt, tensorrt-rtx, auto, or several with commas.", flags=("--engine",)
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
    threads: int | None = option(None, "Of the CPU; its cores by default.", least=1)
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

    Raises:
        RequestError, BundleError, JobError: see `Upscaler`.
    """
    image = given_or_drawn(request.image)
    options = UpscaleOptions(tile=0, batch=max(request.batches), threads=request.threads)
    with TemporaryDirectory() as folder:
        with (
            open_bundles(request.bundles, request.engines, request.device, options) as (bundles, left_out),
            gpu_meter(request.device) as meter,
            counted(1.0, "latency") as tell,
        ):
            cases, too_large = _fitting(request.cases, bundles)
            baselines, trainable, pytorch_notes = _baselines(request, image)
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
    ceilings, ceiling_notes = _ceilings(request, bundles[0])
    seconds = latency_report.table3_seconds(timings)
    ours = seconds.pop(bundles[0].name, None)
    references: Sequence[Method] = baselines or bundles[:1]
    tables = [
        latency_report.latency_table(timings),
        latency_report.stage_table(timings, works, ceilings),
        latency_report.agreement_table(timings, [method.name for method in references]),
        latency_report.cold_start_table(cold_starts, request.cold_starts),
        table3(ours, describe_machine().name, trainable, seconds),
    ]
    drawn = list(latency_report.plots(timings))
    if ceilings:
        tables.append(ceilings.table())
        drawn.append(latency_report.roofline(timings, bundles[0].name, ceilings))
    return Findings(
        tables=tuple(table for table in tables if table.rows),
        plots=tuple(drawn),
        notes=(
            *left_out,
            *too_large,
            *pytorch_notes,
            *ceiling_notes,
            *_energy_notes(timings, request.device),
        ),
    )


def _fitting(cases: Sequence[Case], bundles: Sequence[BundleMethod]) -> tuple[list[Case], list[str]]:
    """The cases whose size all bundles take, and notes on the others.

    Raises:
        RequestError: when there is none.
    """
    fitting, notes = [], []
    for case in cases:
        try:
            for bundle in bundles:
                bundle.upscaler.check_size(case.side, case.side)
            fitting.append(case)
        except RequestError as error:
            notes.append(f"{case.side} pixels were not measured: {error}")
    if not fitting:
        raise RequestError(notes[-1])
    return fitting, notes


def _baselines(request: LatencyRequest, image: Pixels) -> tuple[list[Method], float | None, list[str]]:
    """PyTorch both ways, the millions of parameters that training changes, and notes."""
    if not request.weights.named:
        return [], None, [_WITHOUT_PYTORCH]
    import torch

    from s3diff_benchmarks.pytorch_method import released, trainable_millions, tuned

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
    return [released(network), tuned(network, square_of(image, min(request.sizes)))], trainable, [note]


def _ceilings(request: LatencyRequest, method: BundleMethod) -> tuple[Ceilings | None, list[str]]:
    precision = method.upscaler.manifest.precision
    try:
        seconds = min(_CEILING_SECONDS, request.seconds / 4)
        return measure_ceilings(request.device, precision, request.threads, seconds), []
    except RequestError as error:
        return None, [f"the machine's ceilings were not measured: {error}"]


def _cold_starts(
    request: LatencyRequest, bundles: Sequence[BundleMethod], pytorch: bool, picture: Pixels, folder: Path
) -> dict[str, ColdStart]:
    """What new processes take, by method; none where none were asked for."""
    if not request.cold_starts:
        return {}
    source = folder / "cold-start.png"
    save(Image.fromarray(picture), source)
    device, threads = request.device, request.threads
    tasks = [Task(each.name, each.folder, source, device, threads, each.upscaler.engine) for each in bundles]
    if pytorch:
        tasks.append(Task(RELEASED, request.weights, source, device, threads))
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
