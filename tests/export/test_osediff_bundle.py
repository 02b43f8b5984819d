"""Bundles of OSEDiff compute what the released code computed, at every scale and with prompts of tags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.export.models import CPU_ENGINES, error, photographs
from tests.training.plain_lora import write_osediff

from s3diff_export.build import BuildRequest, build
from s3diff_export.cli import cli
from s3diff_export.graphs.options import GraphOptions
from s3diff_runtime import RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.vocabulary import COLOR_FIXES, Precision
from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.network.base import BaseModel
from s3diff_training.train.new_base import save_base
from s3diff_training.weights import ModelSource

Array = NDArray[Any]
ONE_THREAD = UpscaleOptions(threads=1, tile=0)


@pytest.fixture(scope="module")
def reference(shared: Path) -> Path:
    return shared / "reference-osediff"


@pytest.fixture(scope="module")
def truth(reference: Path) -> dict[str, Array]:
    return load_file(reference / "reference.safetensors")


@pytest.fixture(scope="module")
def bundle(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Build from `osediff.pkl`, with the text encoder inside."""
    source = ModelSource(base=str(reference / "base"), checkpoint=reference / "osediff.pkl")
    path = tmp_path_factory.mktemp("osediff") / "osediff.bundle"
    options = GraphOptions(precision="fp32", prompts="runtime")
    build(BuildRequest(path, source, options, scales=(1, 4), verify=False))
    return Bundle.open(path)


@pytest.fixture(scope="module")
def tiny(bases: dict[str, BaseModel], tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = tmp_path_factory.mktemp("tiny")
    save_base(bases["f4"], folder / "base")
    return ModelSource(
        base=str(folder / "base"), checkpoint=write_osediff(bases["f4"], folder / "osediff.pkl")
    )


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_every_stage_gives_the_released_results(
    bundle: Bundle, reference: Path, truth: dict[str, Array], name: str
) -> None:
    engine, stages = open_engine(bundle, name, cpu=ONE_THREAD)[0], bundle.manifest.stages
    run = {
        name: engine.open(bundle.folder / stages[name].graphs["shared"], stages[name]).run
        for name in ("vae_encoder", "unet", "vae_decoder", *(f"finish_{fix}" for fix in COLOR_FIXES))
    }
    for case in json.loads((reference / "reference.json").read_text())["cases"]:
        key, picture = case["key"], case["key"].split(".")[0]
        if "tiled" in key:
            continue
        before = truth[f"{picture}.prepared_u8"].transpose(2, 0, 1)[None].astype(np.float32) / 255
        latent = np.asarray(run["vae_encoder"]({"enlarged": before})["latent"])
        assert error(latent, truth[f"{picture}.latent"]) <= 2e-5, key  # sums of 1.3e-5 at 504x536
        text = truth[f"p{case['prompt_index']}.text"]
        x0 = np.asarray(run["unet"]({"latent": truth[f"{picture}.latent"], "prompts": text})["x0"])
        assert error(x0, truth[f"{key}x0"]) <= 1e-5, key
        alpha = float(truth["alpha_cumprod_999"].item())
        noise = (truth[f"{picture}.latent"].astype(np.float64) - alpha**0.5 * x0) / (1 - alpha) ** 0.5
        assert error(noise, truth[f"{key}eps"]) <= 1e-5, key
        decoded = np.asarray(run["vae_decoder"]({"x0": truth[f"{key}x0"]})["decoded"])
        if f"{key}decoded" in truth:
            assert error(decoded, truth[f"{key}decoded"]) <= 1e-4, key
        for fix in COLOR_FIXES:
            expected = truth.get(f"{key}float_{fix}")
            if expected is not None:
                found = run[f"finish_{fix}"]({"decoded": decoded, "enlarged": before})["upscaled"]
                levels = np.rint(expected[0].transpose(1, 2, 0) * 255)
                assert np.abs(np.asarray(found)[0].astype(int) - levels).max() <= 1, (key, fix)


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_a_picture_with_its_tags_becomes_the_released_one(
    bundle: Bundle, reference: Path, truth: dict[str, Array], engine: str
) -> None:
    """Picture 0 is neither small nor squeezed; picture 4 is, so its prepared one is given at scale 1."""
    cases = {case["key"]: case for case in json.loads((reference / "reference.json").read_text())["cases"]}
    with Upscaler.open(bundle.folder, engine, options=ONE_THREAD) as upscaler:
        for key in ("s0.p0.", "s0.p1."):
            found = upscaler(truth["s0.lr_u8"], tags=cases[key]["tags"], color_fix="none")
            difference = np.abs(found.pixels.astype(int) - truth[f"{key}final_none_u8"])
            assert difference.max() <= 1  # the released code cuts levels off, this rounds them
            assert (found.estimated, found.applied, found.bin) == (None, {}, None)
        usual = upscaler(truth["s0.lr_u8"], tags=cases["s0.p0."]["tags"])
        levels = np.rint(truth["s0.p0.float_adain"][0].transpose(1, 2, 0) * 255)
        assert np.abs(usual.pixels - levels).max() <= 1
        face = upscaler(truth["s4.prepared_u8"], scale=1, color_fix="none")
        assert np.abs(face.pixels.astype(int) - truth["s4.p1.final_none_u8"]).max() <= 1
        assert face.pixels.shape == truth["s4.prepared_u8"].shape
        own = upscaler([truth["s0.lr_u8"]] * 2, [{"tags": cases["s0.p0."]["tags"]}, {}], color_fix="none")
        assert not np.array_equal(own[0].pixels, own[1].pixels)
        np.testing.assert_array_equal(own[1].pixels, upscaler(truth["s0.lr_u8"], color_fix="none").pixels)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_build_is_verified_and_restores_at_every_scale(
    tiny: ModelSource, precision: Precision, tmp_path: Path
) -> None:
    built = build(BuildRequest(tmp_path / "tiny.bundle", tiny, GraphOptions(precision=precision)))
    assert built.parity
    manifest, network, picture = built.manifest, tiny.load(), photographs(1, 21, 34)[0]
    assert (manifest.family, manifest.lora_mode, manifest.degradation_axes) == ("osediff", "merged", ())
    assert (manifest.scales, manifest.guidance.mode, manifest.multiple) == ((1, 2, 3, 4), "off", 4)
    quantities = {row.quantity for row in built.parity.quantities}
    assert {"enlarged", "epsilon", "x0", "latent", "decoded"} <= quantities
    for engine in CPU_ENGINES:
        with Upscaler.open(built.path, engine, options=ONE_THREAD) as upscaler:
            for scale in manifest.scales:
                found = upscaler(picture, scale=scale).pixels
                exact = to_uint8(network.restore(from_uint8(picture)[None], scale=scale).image)
                difference = np.abs(found.astype(int) - exact.astype(int))
                assert found.shape == (21 * scale, 34 * scale, 3)
                if precision == "fp32":
                    assert difference.max() <= 1
                else:  # 40 dB, the gate of a build; OpenVINO computes it in bf16 where it can
                    assert np.mean(difference**2) <= 255**2 / 1e4
    with Upscaler.open(built.path, options=UpscaleOptions(threads=1, tile=16)) as upscaler:
        for scale, tiles in ((4, 6), (1, 1)):  # tiles have the network's size, whatever the scale
            assert upscaler(picture, scale=scale).tiles == tiles


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"graphs": GraphOptions(lora_mode="fused")},
            "OSEDiff cannot be built so: --lora-mode fused, exp",
        ),
        ({"graphs": GraphOptions(guidance="on")}, "--guidance on, where there is no negative prompt"),
        ({"graphs": GraphOptions("merged"), "bins": ()}, "no bins"),
        ({"scales": (1, 2)}, "scales 1, 2, expected 4 among them"),
        ({"scales": (4, 5)}, "scales is .* expected from 1 to 4"),
    ],
)
def test_what_the_family_lacks_is_refused(
    tiny: ModelSource, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        build(BuildRequest(tmp_path / "tiny.bundle", tiny, **asked))
    assert not any(tmp_path.iterdir())


def test_the_command_line_knows_the_family(tiny: ModelSource, tmp_path: Path) -> None:
    path = tmp_path / "tiny.bundle"
    named = ["--base", str(tiny.base), "--checkpoint", str(tiny.checkpoint)]
    run = CliRunner()
    arguments = ["build", *named, "-o", str(path), "--no-verify", "--scales", "4", "--precision", "fp32"]
    assert run.invoke(cli, arguments).exit_code == 0
    assert Manifest.read(path).family == "osediff"
    shown = run.invoke(cli, ["inspect", str(path)])
    assert "OSEDiff" in shown.output
    assert "none is read or taken" in shown.output
    checked = run.invoke(cli, ["verify", str(path), *named])
    assert checked.exit_code == 0, checked.output
    for wrong in (["--bins", "2x2"], ["--estimator", "de_net.pth"], ["--family", "s3diff"]):
        again = ["build", *named, "-o", str(tmp_path / "other"), *wrong, "--lora-mode", "merged"]
        assert run.invoke(cli, again).exit_code == 2, wrong


def test_the_restore_command_takes_its_settings(tiny: ModelSource, tmp_path: Path) -> None:
    named = ["--base", str(tiny.base), "--checkpoint", str(tiny.checkpoint)]
    from PIL import Image

    Image.fromarray(photographs(1, 13, 18)[0]).convert("LA").save(tmp_path / "in.png")
    arguments = ["restore", str(tmp_path / "in.png"), *named, "--tags", "sky", "--scale", "2"]
    run = CliRunner()
    assert run.invoke(cli, [*arguments, "-o", str(tmp_path / "ours.png")]).exit_code == 0
    with Image.open(tmp_path / "ours.png") as ours:
        assert (ours.size, ours.mode) == ((36, 26), "LA")
    assert torch.is_grad_enabled()
    wrong = run.invoke(cli, [*arguments, "-o", str(tmp_path / "no.png"), "--noise", "0.5"])
    assert wrong.exit_code == 2
    assert "OSEDiff restores without a degradation" in wrong.output + str(wrong.exception)
