"""The commands `bench latency` and `bench throughput`: they read the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from s3diff_benchmarks.report.findings import Assembly
from s3diff_benchmarks.report.output import Output, output_options
from s3diff_benchmarks.weights import Weights, weights_options
from s3diff_runtime.errors import RequestError

_PATH = click.Path(path_type=Path)


def _numbers(least: int, most: int) -> Callable[..., tuple[int, ...]]:
    """Read a list such as 128,256."""

    def read(_context: click.Context, option: click.Parameter, given: str) -> tuple[int, ...]:
        parts = [part.strip() for part in given.split(",")]
        if not all(part.isdecimal() and least <= int(part) <= most for part in parts):
            raise RequestError(
                f"{option.opts[0]} is {given!r}; expected whole numbers from {least} to {most}, with commas"
            )
        return tuple(dict.fromkeys(map(int, parts)))

    return read


def _names(_context: click.Context, _option: click.Parameter, given: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in given.split(",")))


_engines = click.option(
    "--engine",
    "engines",
    default="auto",
    show_default=True,
    callback=_names,
    help="onnx, tensorrt, tensorrt-rtx, auto, or several with commas.",
)
_threads = click.option("--threads", type=click.IntRange(1), help="Of the CPU; its cores by default.")
_image = click.option("--image", type=_PATH, help="Photograph to upscale, cut to size; drawn by default.")


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--vs", type=_PATH, multiple=True, help="Another bundle, timed in the same rounds; repeatable.")
@_engines
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option(
    "--size",
    "sizes",
    default="128",
    show_default=True,
    callback=_numbers(8, 4096),
    help="Sides of the square inputs, in pixels, with commas; the results have four times as many.",
)
@click.option(
    "--batch",
    "batches",
    default="1",
    show_default=True,
    callback=_numbers(1, 256),
    help="Images in a call, with commas.",
)
@weights_options
@_image
@_threads
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="For all rounds; less where the medians are settled within 2 % before.",
)
@click.option(
    "--warm-up",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="Runs of each before any counts.",
)
@click.option(
    "--cold-starts",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="New processes for the time to the first image and the memory; 0 leaves them out.",
)
@output_options
def latency(
    bundle: Path,
    vs: tuple[Path, ...],
    engines: tuple[str, ...],
    device: str,
    sizes: tuple[int, ...],
    batches: tuple[int, ...],
    weights: Weights | None,
    image: Path | None,
    threads: int | None,
    seconds: float,
    warm_up: int,
    cold_starts: int,
    output: Output,
) -> None:
    """Time BUNDLE: seconds for one call, by stage, and what it achieves of this machine.

    Engines, other bundles and, where weights are named, PyTorch (as released, and tuned) run in the same
    rounds, in an order drawn anew each time, so that drift hits all alike. Images are never cut into tiles.
    The paper's Table 3 stands beside; ratios only between what this run measured.

    \b
      s3diff-export bench latency s3diff.bundle --size 128,256 --batch 1,4 -o latency
      s3diff-export bench latency s3diff.bundle --engine onnx,tensorrt --device cuda --demo
    """
    from s3diff_benchmarks.speed.latency_run import LatencyRequest, run_latency

    output.check_folder()
    request = LatencyRequest(
        bundle, vs, engines, device, sizes, batches, seconds, warm_up, cold_starts, threads, image
    )
    assembly = Assembly("latency", f"Latency of {bundle.resolve().name}", asdict(request), (bundle, *vs))
    assembly.publish(run_latency(request, weights, assembly.machine.name), output)


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--engine", default="auto", show_default=True, help="onnx, tensorrt, tensorrt-rtx or auto.")
@click.option(
    "--device",
    "devices",
    default="cpu",
    show_default=True,
    help="cpu, cuda, cuda:N, several with commas, or all for every GPU.",
)
@click.option(
    "--size", type=click.IntRange(8, 4096), default=128, show_default=True, help="Side of the square inputs."
)
@click.option(
    "--callers",
    default="1,2,4,8,16,32,64",
    show_default=True,
    callback=_numbers(1, 256),
    help="Concurrent callers, with commas.",
)
@click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Of the folder's images.")
@_image
@_threads
@click.option(
    "--seconds",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    help="For everything, about.",
)
@output_options
def throughput(
    bundle: Path,
    engine: str,
    devices: str,
    size: int,
    callers: tuple[int, ...],
    batch: int,
    image: Path | None,
    threads: int | None,
    seconds: float,
    output: Output,
) -> None:
    """Images per second of BUNDLE: from a folder, with callers that wait, and with arrivals that do not.

    Callers of the first device each ask for one image after another (closed loop). Then images arrive at
    fixed rates, whether or not the earlier ones are done (open loop): waiting times count from the arrival,
    and the knee is the highest rate that is served in time.

    \b
      s3diff-export bench throughput s3diff.bundle -o throughput
      s3diff-export bench throughput s3diff.bundle --device all --seconds 300 -o throughput --html
    """
    from s3diff_benchmarks.speed.throughput import ThroughputRequest, run_throughput

    output.check_folder()
    request = ThroughputRequest(bundle, engine, devices, size, callers, batch, seconds, threads, image)
    assembly = Assembly("throughput", f"Throughput of {bundle.resolve().name}", asdict(request), (bundle,))
    assembly.publish(run_throughput(request), output)
