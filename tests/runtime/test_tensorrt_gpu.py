"""What only a GPU can tell: the engines of a real bundle compute what ONNX Runtime computes on the CPU.

`S3DIFF_ENGINE_BUNDLE` names a bundle with engines for this machine; `s3diff-export build --demo` and
`s3diff-export engines BUNDLE --engine tensorrt` make one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from s3diff_runtime import RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.flavours import COMPILED_FLAVOURS
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.engines.tensorrt.cuda import Cuda, load_runtime

pytestmark = pytest.mark.gpu

LEVELS = {"fp32": (0.02, 2), "fp16": (0.5, 24)}
"""Mean and largest difference of grey levels that are rounding, by precision."""


@pytest.fixture(scope="module")
def bundle() -> Path:
    folder = os.environ.get("S3DIFF_ENGINE_BUNDLE")
    if not folder:
        pytest.skip("S3DIFF_ENGINE_BUNDLE names no bundle with engines")
    return Path(folder)


@pytest.fixture(scope="module", params=COMPILED_FLAVOURS)
def upscaler(request: pytest.FixtureRequest, bundle: Path) -> Iterator[Upscaler]:
    try:
        opened = Upscaler.open(bundle, request.param, "cuda", UpscaleOptions(check_finite=True, overlap=16))
    except RequestError as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes and some noise, uint8 `[height, width, 3]`."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / 24.0
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in random.uniform(0.3, 2, (3, 3))]
    levels = 128 + 80 * np.stack(waves, -1) + random.normal(0, 6, (height, width, 3))
    return np.clip(levels, 0, 255).astype(np.uint8)


def test_stages_compute_what_the_graphs_compute(bundle: Path, upscaler: Upscaler) -> None:
    """Stage by stage, each on the same inputs, so that errors do not add up."""
    engine, chosen = open_engine(Bundle.open(bundle), upscaler.engine, "cuda")
    manifest, random = Manifest.read(bundle), np.random.default_rng(0)
    tolerance = 2e-2 if manifest.precision == "fp16" else 2e-3
    latent = (1, manifest.latent_channels, 256 // manifest.vae_factor, 384 // manifest.vae_factor)
    values: dict[str, np.ndarray] = {
        "image": photograph(64, 96)[None],
        "degradation": np.array([[0.3, 0.6]], np.float32),
        "guidance": np.array(1.1, np.float32),
        "x0": random.normal(0, 1, latent).astype(np.float32),
    }
    for name in ("estimator", "modulation", "vae_encoder", "unet", "vae_decoder", "finish_wavelet"):
        stage = manifest.stages.get(name)
        if stage is None or any(tensor.name not in values for tensor in stage.inputs):
            continue
        key = next(iter(stage.graphs))
        inputs = {tensor.name: values[tensor.name] for tensor in stage.inputs}
        found = engine.open(chosen.folder / chosen.graph(name, key), stage).run(inputs)
        truth = OnnxEngine().open(bundle / stage.graphs[key], stage).run(inputs)
        for output, value in truth.items():
            expected = np.asarray(value).astype(np.float64)
            error = np.abs(np.asarray(found[output]) - expected).max() / max(np.abs(expected).max(), 1e-6)
            assert error < tolerance, f"{name}: {output} is off by {error:.2e}"
            values.setdefault(output, np.asarray(value))


def test_pictures_equal_those_of_the_cpu(bundle: Path, upscaler: Upscaler) -> None:
    mean, most = LEVELS[upscaler.manifest.precision]
    images = [photograph(48, 64), photograph(48, 64, 1), photograph(150, 131, 2), photograph(17, 90, 3)]
    with Upscaler.open(bundle, "onnx", "cpu", upscaler.options) as reference:
        pairs = zip(upscaler(images), reference(images), strict=True)
    for found, expected in pairs:
        difference = np.abs(found.pixels.astype(int) - expected.pixels)
        assert (found.bin, found.tiles) == (expected.bin, expected.tiles)
        assert difference.mean() < mean
        assert difference.max() <= most


def test_graphs_give_what_the_first_run_gave(upscaler: Upscaler) -> None:
    images = [photograph(64, 64, seed) for seed in range(2)]
    first = [upscaler(image).pixels for image in images]
    for _ in range(4):
        for image, expected in zip(images, first, strict=True):
            np.testing.assert_array_equal(upscaler(image).pixels, expected)


def test_callers_on_several_threads_get_their_own_results(upscaler: Upscaler) -> None:
    images = [photograph(32 + 8 * (seed % 4), 64, seed) for seed in range(16)]
    expected = [upscaler(image).pixels for image in images]
    with ThreadPoolExecutor(6) as threads:
        for found, pixels in zip(threads.map(upscaler, images * 2), expected * 2, strict=True):
            np.testing.assert_array_equal(found.pixels, pixels)


def test_stages_have_device_times(upscaler: Upscaler) -> None:
    seconds = upscaler(photograph(64, 64)).seconds
    stages = [stage for stage in seconds if stage != "host"]
    assert {"estimator", "unet", "vae_decoder"} <= set(stages)
    assert all(0 < seconds[stage] < 5 for stage in stages)


def test_closing_gives_the_memory_back(bundle: Path, upscaler: Upscaler) -> None:
    runtime = load_runtime()
    Cuda(runtime).activate()
    free = []
    for _ in range(3):
        with Upscaler.open(bundle, upscaler.engine, "cuda") as again:
            again([photograph(64, 64)] * 3)
        free.append(runtime.cudaMemGetInfo()[1])
    assert free[-1] >= free[0] - 2**20
