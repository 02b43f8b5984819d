"""Bundles built from the released formats compute what the released code computed, in every mode.

The truth is shared/reference, which the released code wrote, and for whole images PyTorch beside the bundle.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file
from tests.export.models import error, photographs
from tests.training.released_parity import reference_network

from s3diff_export.build import BuildRequest, build
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.verification.cases import CheckCase
from s3diff_export.verification.chain import open_stage, stage_inputs
from s3diff_export.verification.parity import Gates, verify
from s3diff_export.verification.reference import references
from s3diff_runtime import UpscaleOptions, Upscaler
from s3diff_runtime.bundle.manifest import SHARED, Bin, Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.vocabulary import COLOR_FIXES, ColorFix
from s3diff_training.weights import ModelSource

Array = NDArray[Any]
MODES = [
    "fused",
    pytest.param("dynamic", marks=pytest.mark.slow),
    pytest.param("merged", marks=pytest.mark.slow),
]
CASE = "s0.d1"
"""The case whose degradation is the merged bundle's only bin."""
FIXES = COLOR_FIXES


@pytest.fixture(scope="module")
def truth(shared: Path) -> dict[str, Array]:
    return load_file(shared / "reference" / "reference.safetensors")


@pytest.fixture(scope="module")
def cases(shared: Path) -> list[str]:
    description = json.loads((shared / "reference" / "reference.json").read_text())
    return [case["key"].rstrip(".") for case in description["cases"]]


def applied(truth: dict[str, Array], case: str) -> tuple[float, float]:
    """Noise and blur of a case; the released estimator gives blur first."""
    blur, noise = truth[f"{case}.degradation"][0].tolist()
    return noise, blur


@pytest.fixture(scope="module", params=MODES)
def bundle(
    request: pytest.FixtureRequest,
    shared: Path,
    truth: dict[str, Array],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Manifest]:
    """Build from `s3diff.pkl` and `de_net.pth`; merged at the degradation of one case."""
    mode: LoraMode = request.param
    folder = shared / "reference"
    noise, blur = applied(truth, CASE)
    pictures = tmp_path_factory.mktemp("pictures")
    Image.fromarray(photographs(1, 16, 16)[0]).save(
        pictures / "one.png"
    )  # the tests below bring the real ones
    path = tmp_path_factory.mktemp("reference") / f"{mode}.bundle"
    bins: dict[str, Any] = {}
    if LORA_MODES[mode].has_bins:
        bins["bins"] = (Bin(name="case", noise=noise, blur=blur),)
    wanted = BuildRequest(
        path,
        ModelSource(False, str(folder / "base"), folder / "s3diff.pkl", folder / "de_net.pth"),
        GraphOptions(mode, "fp32"),
        verify=False,
        images=pictures,
        **bins,
    )
    return path, build(wanted).manifest


def epsilon(truth: dict[str, Array], case: str, x0: Array) -> Array:
    """The noise behind an x0 of the case's latent, in float64."""
    alpha = float(truth["alpha_cumprod_999"].item())
    latent = truth[f"{case}.latent"].astype(np.float64)
    return np.asarray((latent - math.sqrt(alpha) * x0.astype(np.float64)) / math.sqrt(1 - alpha))


def test_the_unet_gives_the_released_noise(
    bundle: tuple[Path, Manifest], truth: dict[str, Array], cases: list[str]
) -> None:
    folder, manifest = bundle
    (key,) = manifest.stages["unet"].graphs
    session = open_stage(Bundle(folder, manifest), OnnxEngine(threads=1), "unet", key)
    for case in [CASE] if manifest.bins else cases:
        known = {name: truth[f"{case}.{name}"] for name in ("latent", "unet_modulation")}
        given = stage_inputs(manifest, "unet", known)
        x0 = {
            scale: np.asarray(session.run({**given, "guidance": np.asarray(scale, np.float32)})["x0"])
            for scale in (0, 1, manifest.guidance.default)
        }
        assert error(epsilon(truth, case, x0[1]), truth[f"{case}.eps_pos"]) <= 1e-4, case
        assert error(epsilon(truth, case, x0[0]), truth[f"{case}.eps_neg"]) <= 1e-4, case
        assert error(x0[1], truth[f"{case}.single.x0"]) <= 1e-4, case
        assert error(x0[manifest.guidance.default], truth[f"{case}.x0"]) <= 1e-4, case


def test_every_stage_agrees_with_pytorch(
    bundle: tuple[Path, Manifest], shared: Path, truth: dict[str, Array], cases: list[str]
) -> None:
    folder, manifest = bundle
    network = reference_network(shared / "reference")
    chosen = [
        CheckCase(
            truth[f"{case.split('.')[0]}.lr_u8"],
            dict(zip(("noise", "blur"), applied(truth, case), strict=True)),
            "case" if manifest.bins else None,
        )
        for case in ([CASE] if manifest.bins else cases[:3])
    ]
    truths = references(network, chosen, FIXES)
    report = verify(Bundle(folder, manifest), truths, Gates(), engine=OnnxEngine(threads=1))
    assert report, report.broken
    checked = {row.quantity for row in report.quantities}
    assert {"epsilon_positive", "epsilon_negative", "x0", "latent", "decoded", "degradation"} <= checked
    assert set(report.psnr) == set(FIXES)
    assert not verify(Bundle(folder, manifest), truths, Gates(epsilon=1e-12), engine=OnnxEngine(threads=1))


@pytest.mark.parametrize("fix", FIXES)
def test_the_image_is_the_released_one(
    bundle: tuple[Path, Manifest], truth: dict[str, Array], cases: list[str], fix: ColorFix
) -> None:
    folder, manifest = bundle
    with Upscaler.open(folder, options=UpscaleOptions(threads=1, tile=None)) as upscaler:
        for case in [CASE] if manifest.bins else cases:
            noise, blur = applied(truth, case)
            image = truth[f"{case.split('.')[0]}.lr_u8"]
            found = upscaler(image, noise=noise, blur=blur, color_fix=fix)
            released = truth[f"{case}.sr_{fix}"][0].transpose(1, 2, 0)
            levels = torch.from_numpy(released * 255).round().numpy()
            assert np.abs(found.pixels.astype(np.float32) - levels).max() <= 1, case


def test_the_estimate_is_the_released_one(bundle: tuple[Path, Manifest], truth: dict[str, Array]) -> None:
    folder, manifest = bundle
    session = OnnxEngine(threads=1).open(
        folder / manifest.stages["estimator"].graphs[SHARED], manifest.stages["estimator"]
    )
    found = np.asarray(session.run({"image": truth["s0.lr_u8"][None]})["degradation"])
    assert error(found, truth["s0.estimate"]) <= 1e-5
    assert manifest.degradation_axes == ("blur", "noise")
