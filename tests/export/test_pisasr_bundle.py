"""Bundles of PiSA-SR compute what the released code computed, for all strengths, in as few passes."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.export.models import CPU_ENGINES, error, photographs
from tests.training.plain_lora import write_pisasr

from s3diff_export.build import BuildRequest, build
from s3diff_export.graphs.options import GraphOptions
from s3diff_runtime import RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.strengths import PASSES, Strengths
from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.families.pisasr import PiSASR
from s3diff_training.network.base import BaseModel
from s3diff_training.train.new_base import save_base
from s3diff_training.weights import ModelSource

Array = NDArray[Any]
PAIRS = [(1.0, 1.0), (1.0, 0.0), (1.2, 0.6), (0.5, 0.5), (0.0, 1.0)]


@pytest.fixture(scope="module")
def tiny(bases: dict[str, BaseModel], tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("tiny")
    save_base(bases["f4"], folder / "base")
    return ModelSource(
        base=str(folder / "base"), checkpoint=write_pisasr(bases["f4"], folder / "pisa_sr.pkl")
    )


def test_the_unet_gives_the_released_results_for_every_pair(shared: Path, tmp_path: Path) -> None:
    reference = shared / "reference-pisasr"
    truth = load_file(reference / "reference.safetensors")
    source = ModelSource(base=str(reference / "base"), checkpoint=reference / "pisa_sr.pkl")
    options = GraphOptions(precision="fp32")
    path = tmp_path / "pisasr.bundle"
    build(BuildRequest(path, source, options, scales=(4,), color_fixes=("none",), verify=False))
    bundle = Bundle.open(path)
    stage = bundle.manifest.stages["unet"]
    engines = [open_engine(bundle, name, cpu=CpuOptions(threads=1))[0] for name in CPU_ENGINES]
    unets = [{name: each.open(path / stage.graphs[name], stage) for name in PASSES} for each in engines]
    seen = set()
    for case in json.loads((reference / "reference.json").read_text())["cases"]:
        key, picture = case["key"], case["key"].split(".")[0]
        if "tiled" in key:
            continue
        strengths = Strengths(case.get("lambda_pix", 1.0), case.get("lambda_sem", 1.0))
        seen.add(strengths.passes)
        latent = truth[f"{picture}.latent"]
        scales = {f"{name}_scale": np.array([at], np.float32) for name, at in strengths._asdict().items()}
        # What needs one pass comes out of two alike.
        for unet, passes in product(unets, {strengths.passes, "two"}):
            x0 = np.asarray(unet[passes].run({"latent": latent, **scales})["x0"])
            assert error(latent - x0, truth[f"{key}pred"]) <= 1e-5, (key, passes)
            assert error(x0, truth[f"{key}x0"]) <= 1e-5, (key, passes)
    assert seen == set(PASSES)


@pytest.mark.parametrize(("prompts", "engine"), [("folded", "openvino"), ("runtime", "onnx")])
def test_strengths_are_inputs(
    tiny: ModelSource,
    tmp_path: Path,
    prompts: Any,  # noqa: ANN401
    engine: str,
) -> None:
    options = GraphOptions(precision="fp32", prompts=prompts)
    built = build(BuildRequest(tmp_path / "b", tiny, options, scales=(2, 4), color_fixes=("adain",)))
    assert built.parity
    rows = {row.quantity: row for row in built.parity.quantities}
    assert rows["residual_both"].limit == rows["residual_pixel"].limit == built.parity.gates.epsilon
    specs = {spec.name: spec for spec in built.manifest.stages["unet"].inputs}
    for name in ("pixel_scale", "semantic_scale"):
        assert (specs[name].dtype, specs[name].shape) == ("float32", ("batch",))
    network, picture = tiny.load(), photographs(1, 13, 22)[0]
    assert isinstance(network, PiSASR)
    with Upscaler.open(built.path, engine, options=UpscaleOptions(threads=1, tile=0)) as upscaler:
        images = [picture] * len(PAIRS)
        mixed = upscaler(images, [{"pixel": pixel, "semantic": semantic} for pixel, semantic in PAIRS])
        for (pixel, semantic), result in zip(PAIRS, mixed, strict=True):
            exact = network.restore(from_uint8(picture)[None], pixel=pixel, semantic=semantic).image
            difference = np.abs(result.pixels.astype(int) - to_uint8(exact).astype(int))
            assert difference.max() <= 1, (pixel, semantic)
        small = upscaler(picture, scale=2, pixel=0.8).pixels
        exact = network.restore(from_uint8(picture)[None], scale=2, pixel=0.8).image
        assert np.abs(small.astype(int) - to_uint8(exact).astype(int)).max() <= 1
        assert len({result.pixels.tobytes() for result in mixed}) == len(PAIRS)
        with pytest.raises(RequestError, match="PiSA-SR has one prompt, and takes no guidance"):
            upscaler(picture, guidance=2.0)


def test_merged_is_the_usual_pass_alone(tiny: ModelSource, tmp_path: Path) -> None:
    options = GraphOptions("merged", "fp16")
    built = build(BuildRequest(tmp_path / "b", tiny, options, scales=(4,), color_fixes=("none",)))
    assert built.parity
    assert list(built.manifest.stages["unet"].graphs) == ["shared"]
    with Upscaler.open(built.path, options=UpscaleOptions(threads=1)) as upscaler:
        picture = photographs(1, 9, 9)[0]
        exact = to_uint8(tiny.load().restore(from_uint8(picture)[None], color_fix="none").image)
        difference = upscaler(picture).pixels.astype(int) - exact.astype(int)
        assert np.mean(difference**2) <= 255**2 / 1e4  # 40 dB, the gate of a build
        with pytest.raises(RequestError, match="merged in as 1; build it with --lora-mode dynamic"):
            upscaler(picture, pixel=1.0)
    with pytest.raises(RequestError, match="PiSA-SR cannot be built so: --lora-mode fused"):
        build(BuildRequest(tmp_path / "c", tiny, GraphOptions("fused")))
