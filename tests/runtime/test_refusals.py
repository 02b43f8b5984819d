"""What an upscaler refuses: settings, options, pixels and bundles, each with what to do instead."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.fake_bundle import dark_noise, edit_manifest, write_fake_bundle

from s3diff_runtime import BundleError, JobError, RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.engines.onnx import OnnxSession

pytestmark = pytest.mark.usefixtures("only_onnx")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        "dynamic": write_fake_bundle(folder / "dynamic", "dynamic"),
        "contrast": write_fake_bundle(folder / "contrast", "dynamic", contrast=True),
        "prompts": write_fake_bundle(folder / "prompts", "dynamic", prompts="runtime"),
        "one prompt": write_fake_bundle(folder / "one", "fused", prompts="runtime", guidance="off"),
        "unguided": write_fake_bundle(folder / "off", "merged", guidance="off", color_fixes=["none"]),
    }


def upscale(bundle: Path, images: Any, options: UpscaleOptions | None = None, **asked: Any) -> Any:  # noqa: ANN401
    with Upscaler.open(bundle, options=options) as upscaler:
        return upscaler(images, **asked)


@pytest.mark.parametrize(
    ("bundle", "asked", "message"),
    [
        ("dynamic", {"noise": -0.1}, "noise is -0.1, expected from 0 to 1"),
        ("dynamic", {"blur": float("nan")}, "blur is nan, expected from 0 to 1"),
        ("dynamic", {"noise": 2, "blur": 3}, "noise is 2, .*; blur is 3, "),
        ("dynamic", {"guidance": float("inf")}, "guidance is inf, expected a finite number"),
        ("dynamic", {"color_fix": "sepia"}, "color_fix is 'sepia', expected one of wavelet, adain, none"),
        ("dynamic", {"prompt": "x"}, "has its prompts folded in .* --prompts runtime"),
        ("dynamic", {"negative_prompt": "x"}, "has its prompts folded in"),
        (
            "unguided",
            {"guidance": 1.0, "color_fix": "adain"},
            "built with --guidance off and takes no guidance; color_fix",
        ),
        ("one prompt", {"negative_prompt": "x"}, "--guidance off and takes no negative prompt"),
    ],
)
def test_settings_out_of_range(
    bundles: dict[str, Path], bundle: str, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        upscale(bundles[bundle], dark_noise(8, 8), **asked)


def test_unknown_setting(bundles: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match=r"sharpness"):
        upscale(bundles["dynamic"], dark_noise(8, 8), sharpness=1)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
    ],
)
def test_pixels_of_another_kind(bundles: dict[str, Path], pixels: np.ndarray) -> None:
    message = r"image 1 is .*; expected uint8 \[H, W, 3\]"
    with Upscaler.open(bundles["dynamic"]) as upscaler, pytest.raises(RequestError, match=message):
        upscaler.upscale_pixels([dark_noise(8, 8), pixels])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": -1}, "tile is -1"),
        ({"tile": 32, "overlap": 17}, "overlap is 17, expected from 0 to half the tile of 32"),
        ({"overlap": -1, "batch": 0}, "overlap is -1, .*; batch is 0, "),
        ({"threads": 0, "memory_mib": 0}, "threads is 0, .*; memory_mib is 0, "),
        ({"check": "none"}, "check is 'none', expected one of sizes, hashes"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        UpscaleOptions(**options)


def test_tile_that_does_not_fit_the_bundle(bundles: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match=r"tile is 34, expected a multiple of 4 .*: 32 or 36"):
        Upscaler.open(bundles["dynamic"], options=UpscaleOptions(tile=34))


def test_engine_and_device_are_passed_on(bundles: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match=r"unknown engine"):
        Upscaler.open(bundles["dynamic"], engine="fast")
    with pytest.raises(RequestError, match=r"unknown device"):
        Upscaler.open(bundles["dynamic"], device="tpu")


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle"):
        Upscaler.open(tmp_path)


def test_hashes_on_request(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, "dynamic")
    edit_manifest(tmp_path, lambda content: content["files"]["onnx/unet.onnx"].update(sha256="0" * 64))
    with pytest.raises(BundleError, match=r"onnx/unet.onnx was altered"):
        Upscaler.open(tmp_path, options=UpscaleOptions(check="hashes"))


def test_shared_graphs_are_loaded_on_opening(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, "dynamic")
    swapped = (tmp_path / "onnx" / "unet.onnx", tmp_path / "onnx" / "vae_decoder.onnx")
    contents = [path.read_bytes() for path in swapped]
    for path, content in zip(swapped, reversed(contents), strict=True):
        path.write_bytes(content)

    def accept(content: dict[str, Any]) -> None:
        files = content["files"]
        files["onnx/unet.onnx"], files["onnx/vae_decoder.onnx"] = (
            files["onnx/vae_decoder.onnx"],
            files["onnx/unet.onnx"],
        )

    edit_manifest(tmp_path, accept)
    with pytest.raises(BundleError, match=r"unet.onnx has the inputs x0"):
        Upscaler.open(tmp_path)


def test_closed_upscaler(bundles: dict[str, Path]) -> None:
    upscaler = Upscaler.open(bundles["dynamic"])
    upscaler.close()
    upscaler.close()
    with pytest.raises(RequestError, match=r"closed; open the bundle again"):
        upscaler(dark_noise(8, 8))


def test_missing_tokenizers(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RequestError, match=r"prompts need the package tokenizers: pip install .*\[prompts\]"):
        upscale(bundles["prompts"], dark_noise(8, 8))


def test_tokenizer_of_another_length(tmp_path: Path) -> None:
    write_fake_bundle(tmp_path, "dynamic", prompts="runtime")
    edit_manifest(tmp_path, lambda content: content["prompts"].update(max_length=9))
    with pytest.raises(BundleError, match=r"pads prompts to 8 tokens, the manifest says 9"):
        upscale(tmp_path, dark_noise(8, 8))


@pytest.mark.parametrize("stage", ["vae_encoder", "unet", "vae_decoder"])
def test_values_that_are_not_finite(
    bundles: dict[str, Path], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxSession.run

    def spoiled(session: OnnxSession, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = run(session, inputs)
        if session._stage != stage:
            return outputs
        return {name: np.asarray(value) * np.float32("nan") for name, value in outputs.items()}

    monkeypatch.setattr(OnnxSession, "run", spoiled)
    with pytest.raises(JobError, match=rf"stage {stage} gave values of .* that are not finite"):
        upscale(bundles["dynamic"], dark_noise(8, 8), UpscaleOptions(check_finite=True))
    for bundle in ("dynamic", "contrast"):
        with pytest.raises(JobError, match="the network gave no picture"):
            upscale(bundles[bundle], dark_noise(8, 8))


@pytest.mark.parametrize(
    ("scale", "message"), [(0.0, "one flat colour"), (1e30, "values that are not finite")]
)
def test_finite_values_that_are_no_picture(
    bundles: dict[str, Path], scale: float, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxSession.run

    def spoiled(session: OnnxSession, inputs: dict[str, Any]) -> dict[str, Any]:
        if session._stage == "vae_decoder":
            inputs = {**inputs, "x0": np.asarray(inputs["x0"]) * np.float32(scale)}
        return run(session, inputs)

    picture = dark_noise(8, 8)
    assert upscale(bundles["contrast"], picture).pixels.std() > 0
    monkeypatch.setattr(OnnxSession, "run", spoiled)
    with pytest.raises(JobError, match=message):
        upscale(bundles["contrast"], picture)


def test_picture_of_one_colour_is_one(bundles: dict[str, Path]) -> None:
    """A bundle that measures no contrast may make one colour of one colour."""
    black = np.zeros((8, 8, 3), np.uint8)
    assert upscale(bundles["dynamic"], black).pixels.shape == (32, 32, 3)


def test_estimate_that_is_not_finite(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = {"degradation": np.full((1, 2), np.nan, np.float32)}
    monkeypatch.setattr(OnnxSession, "run", lambda session, inputs: spoiled)
    with pytest.raises(
        JobError, match=r"estimator gave scores that are not finite; set noise and blur by hand"
    ):
        upscale(bundles["dynamic"], dark_noise(8, 8))


def test_out_of_memory(bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("s3diff_runtime.pictures.tiling.TilePlan.blend", exhaust)
    with pytest.raises(JobError, match=r"out of memory"):
        upscale(bundles["dynamic"], dark_noise(80, 80), UpscaleOptions(tile=32))


# --- what a graph gives ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "wrong", "message"),
    [
        (
            "degradation",
            np.full((1, 3), 0.5, np.float32),
            r"estimator gave degradation of shape \[1, 3\]",
        ),
        ("degradation", np.float32(0.5), r"estimator gave degradation of shape \[\]"),
        (
            "degradation",
            np.full((2, 2), 0.5, np.float32),
            r"of shape \[2, 2\], expected \[1, 2\]",
        ),
        (
            "degradation",
            np.full((1, 2), 1e30, np.float32),
            r"gave scores from 1e\+30 to 1e\+30",
        ),
        ("degradation", np.array([[0.5, -0.1]], np.float32), r"gave scores from -0.1 to 0.5"),
        ("x0", np.zeros((1, 5, 8, 8), np.float32), r"stage unet gave x0 of shape \[1, 5, 8, 8\]"),
        (
            "upscaled",
            np.zeros((1, 0, 32, 3), np.uint8),
            r"gave upscaled of shape \[1, 0, ",
        ),
        ("upscaled", np.zeros((1, 32, 31, 3), np.uint8), r"gave \[1, 32, 31, 3\], expected \[1, 32, 32"),
    ],
)
def test_outputs_that_are_not_what_the_manifest_says(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, output: str, wrong: np.ndarray, message: str
) -> None:
    run = OnnxSession.run

    def altered(session: OnnxSession, inputs: Any) -> Any:  # noqa: ANN401
        return {name: wrong if name == output else value for name, value in run(session, inputs).items()}

    monkeypatch.setattr(OnnxSession, "run", altered)
    with pytest.raises(BundleError, match=message):
        upscale(bundles["dynamic"], dark_noise(8, 8))
