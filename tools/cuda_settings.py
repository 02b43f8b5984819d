"""Compare ONNX Runtime's settings for CUDA on a bundle, in one interleaved run: a step of tools/gpu_check.py.

    python tools/cuda_settings.py small.bundle

Opens the bundle once for each set of settings and times 128→512 calls, stage by stage. What the product sets
is the first row (`SETTINGS` in engines/onnx_cuda.py), to be changed by whoever finds a faster one on a GPU.
Prints the tables of `bench latency` as JSON.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import click

from s3diff_benchmarks.methods import BundleMethod
from s3diff_benchmarks.pictures.pixels import given_or_drawn
from s3diff_benchmarks.speed.latency import Case, measure
from s3diff_benchmarks.speed.latency_run import agreement_table, latency_table, stage_table
from s3diff_export.cli import failure
from s3diff_runtime.engines import onnx_cuda
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "as shipped": {},
    "all algorithms tried": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "the first algorithm": {"cudnn_conv_algo_search": "DEFAULT"},
    "channels last preferred": {"prefer_nhwc": 1},
    "convolutions with their bias": {"fuse_conv_bias": 1},
    "arena of doubled blocks": {"arena_extend_strategy": "kNextPowerOfTwo"},
}
_WARM_UP = 4
"""Runs of each: the third of a shape captures its CUDA graph."""


@contextmanager
def variants(bundle: Path, device: str) -> Iterator[list[BundleMethod]]:
    """The bundle under every set of settings, named by it, until the block ends."""
    with ExitStack() as opened:
        methods = []
        for name, settings in VARIANTS.items():
            with patch.object(onnx_cuda, "SETTINGS", {**onnx_cuda.SETTINGS, **settings}):
                upscaler = opened.enter_context(Upscaler.open(bundle, "onnx", device, UpscaleOptions(tile=0)))
            methods.append(BundleMethod(name, bundle, upscaler))
        yield methods


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--device", default="cuda", show_default=True, help="cuda, cuda:N, or cpu to try the tool itself."
)
@click.option("--side", default=128, show_default=True, help="Of the square input, in pixels.")
@click.option("--seconds", default=60.0, show_default=True, help="For all rounds.")
def main(bundle: Path, device: str, side: int, seconds: float) -> None:
    """Time every variant, and print what was found."""
    try:
        with variants(bundle, device) as methods, TemporaryDirectory() as folder:
            image, case = given_or_drawn(None), Case(side, 1)
            timings = measure(methods, [case], image, Path(folder), seconds=seconds, warm_up=_WARM_UP)
    except Exception as error:
        raise failure(error, "bench,gpu") from error
    first = next(iter(VARIANTS))
    tables = [latency_table(timings), stage_table(timings, {}, None), agreement_table(timings, [first])]
    click.echo(json.dumps({"tables": [table.model_dump(mode="json") for table in tables]}))


if __name__ == "__main__":
    main()
