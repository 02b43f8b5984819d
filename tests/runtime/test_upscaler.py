"""The upscaler: what reaches the network for every kind of bundle, image and setting."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.runtime.fake_bundle import (
    BINS,
    SHIFT,
    Axes,
    dark_noise,
    enlarged,
    estimate_of,
    expected_shift,
    write_fake_bundle,
)

import s3diff_runtime
from s3diff_runtime import Result, UpscaleOptions, Upscaler
from s3diff_runtime.engines.onnx import OnnxSession
from s3diff_runtime.lora_modes import LoraMode
from s3diff_runtime.settings import UpscaleSettings
from s3diff_runtime.upscaler import ImageLike

pytestmark = pytest.mark.usefixtures("only_onnx")

MODES: tuple[LoraMode, ...] = ("merged", "dynamic", "fused")
OPTIONS = UpscaleOptions(tile=32, overlap=8, batch=3)


def shift_of(result: Result, **conditions: Any) -> float:  # noqa: ANN401
    """What the fake network adds for the degradation that the result says was applied."""
    applied = result.applied if result.bin is None else {"noise": result.bin.noise, "blur": result.bin.blur}
    return expected_shift(applied["noise"], applied["blur"], **conditions)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a rounding that went the other way."""
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


class Calls:
    """The shapes of what ran, stage by stage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[str, dict[str, tuple[int, ...]]]] = []
        run = OnnxSession.run

        def recording(session: OnnxSession, inputs: dict[str, Any]) -> dict[str, Any]:
            shapes = {name: np.asarray(value).shape for name, value in inputs.items()}
            self.shapes.append((session._stage, shapes))
            return run(session, inputs)

        monkeypatch.setattr(OnnxSession, "run", recording)

    def batches(self, stage: str) -> list[int]:
        return [next(iter(shapes.values()))[0] for name, shapes in self.shapes if name == stage]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[str, Path] = {mode: write_fake_bundle(folder / mode, mode) for mode in MODES}
    made["prompts"] = write_fake_bundle(folder / "prompts", "dynamic", prompts="runtime")
    made["one prompt"] = write_fake_bundle(folder / "one", "fused", prompts="runtime", guidance="off")
    made["unguided"] = write_fake_bundle(folder / "off", "merged", guidance="off", color_fixes=["none"])
    made["blur first"] = write_fake_bundle(folder / "axes", "dynamic", axes=("blur", "noise"))
    return made


def upscale(bundle: Path, images: Any, options: UpscaleOptions = OPTIONS, **asked: Any) -> Any:  # noqa: ANN401
    with Upscaler.open(bundle, options=options) as upscaler:
        return upscaler(images, **asked)


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*MODES, "blur first"])
def test_estimate_reaches_the_network(bundles: dict[str, Path], mode: str) -> None:
    image = dark_noise(10, 13)
    result = upscale(bundles[mode], image, color_fix="none")
    axes: Axes = ("blur", "noise") if mode == "blur first" else ("noise", "blur")
    assert result.estimated == pytest.approx(estimate_of(image, axes), abs=1e-5)
    assert result.applied == result.estimated
    assert_same(result.pixels, enlarged(image, shift_of(result)))


@pytest.mark.parametrize("mode", MODES)
def test_degradation_by_hand(bundles: dict[str, Path], mode: LoraMode, calls: Calls) -> None:
    image = dark_noise(8, 8)
    result = upscale(bundles[mode], image, noise=1, blur=0, color_fix="none")
    assert (result.estimated, result.applied) == (None, {"noise": 1.0, "blur": 0.0})
    assert not calls.batches("estimator")
    assert_same(result.pixels, enlarged(image, SHIFT))


def test_one_score_by_hand(bundles: dict[str, Path]) -> None:
    image = dark_noise(8, 8)
    result = upscale(bundles["dynamic"], image, blur=0.5, color_fix="none")
    assert result.applied == {"noise": result.estimated["noise"], "blur": 0.5}
    assert_same(result.pixels, enlarged(image, shift_of(result)))


def test_nearest_bin_is_used_and_told(bundles: dict[str, Path]) -> None:
    result = upscale(bundles["merged"], dark_noise(8, 8), noise=0.8, blur=0.3)
    assert result.bin == BINS[7]
    assert (result.bin.noise, result.bin.blur) == (1.0, 0.5)


def test_color_fixes_are_told_apart(bundles: dict[str, Path]) -> None:
    image = dark_noise(8, 8)
    with Upscaler.open(bundles["dynamic"]) as upscaler:
        plain, negative, default = (
            upscaler(image, noise=1, blur=1, color_fix=fix).pixels for fix in ("none", "adain", "wavelet")
        )
    assert_same(negative, 255 - plain)
    assert_same(default, enlarged(image))


@pytest.mark.parametrize(("guidance", "expected"), [(None, 1.0), (3.0, 3.0)])
def test_guidance(bundles: dict[str, Path], guidance: float | None, expected: float) -> None:
    image = dark_noise(8, 8)
    result = upscale(bundles["fused"], image, noise=0, blur=0, guidance=guidance, color_fix="none")
    assert_same(result.pixels, enlarged(image, expected_shift(0, 0, expected)))


@pytest.mark.parametrize(
    ("prompt", "negative", "expected"),
    [
        (None, None, ("bright", "dark")),
        ("dark", "bright", ("dark", "bright")),
        ("dark", None, ("dark", "dark")),
        ("bright", "", ("bright", "")),
    ],
)
def test_prompts(
    bundles: dict[str, Path], prompt: str | None, negative: str | None, expected: tuple[str, str]
) -> None:
    image = dark_noise(8, 8, brightest=40) + np.uint8(60)
    result = upscale(
        bundles["prompts"], image, noise=0, blur=0, color_fix="none", prompt=prompt, negative_prompt=negative
    )
    assert_same(result.pixels, enlarged(image, expected_shift(0, 0, 1, *expected)))


def test_prompts_are_encoded_once(bundles: dict[str, Path], calls: Calls) -> None:
    with Upscaler.open(bundles["prompts"]) as upscaler:
        for prompt in ("bright", "bright", "dark", None, "bright", "dark"):
            upscaler(dark_noise(8, 8), prompt=prompt)
    assert calls.batches("text_encoder") == [2, 2]  # None stands for "bright"


def test_one_prompt_without_guidance(bundles: dict[str, Path]) -> None:
    image = dark_noise(8, 8)
    result = upscale(bundles["one prompt"], image, noise=0, blur=0, prompt="dark", color_fix="none")
    assert_same(result.pixels, enlarged(image, expected_shift(0, 0, 1, "dark")))


def test_result_tells_what_was_done(bundles: dict[str, Path]) -> None:
    result = upscale(bundles["dynamic"], dark_noise(50, 90))
    assert (result.engine, result.device, result.tiles, result.bin) == ("onnx", "cpu", 2 * 4, None)
    stages = {"estimator", "modulation", "vae_encoder", "unet", "vae_decoder", "finish_wavelet"}
    assert set(result.seconds) == stages | {"upload", "download", "host"}
    assert all(seconds > 0 for seconds in result.seconds.values())
    assert result.image.size == (360, 200)
    assert result.image is result.image


# --- what goes in ---------------------------------------------------------------------------------


def test_paths_images_and_arrays(bundles: dict[str, Path], tmp_path: Path) -> None:
    pixels = dark_noise(8, 12)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    sources: list[ImageLike] = [
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        Image.fromarray(pixels),
        pixels,
    ]
    with Upscaler.open(bundles["dynamic"]) as upscaler:
        alone = [upscaler(source) for source in sources]
        for result in [*alone, *upscaler(sources)]:
            assert_same(result.pixels, enlarged(pixels))


def test_image_keeps_its_kind(bundles: dict[str, Path]) -> None:
    grey = Image.fromarray(dark_noise(8, 12)[..., 0]).convert("LA")
    result = upscale(bundles["dynamic"], grey)
    assert result.image.mode == "LA"
    assert result.image.size == (48, 32)


@given(sides=st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), max_size=5), batch=st.integers(1, 4))
@settings(max_examples=20)
def test_any_sizes_in_one_list(
    bundles: dict[str, Path], sides: Sequence[tuple[int, int]], batch: int
) -> None:
    images = [dark_noise(*side, seed=number) for number, side in enumerate(sides)]
    options = UpscaleOptions(tile=32, overlap=12, batch=batch, threads=1)
    results = upscale(bundles["fused"], images, options, noise=0.5, blur=0.25, color_fix="none")
    assert len(results) == len(images)
    for image, result in zip(images, results, strict=True):
        assert_same(result.pixels, enlarged(image, expected_shift(0.5, 0.25)))


def test_empty_list(bundles: dict[str, Path]) -> None:
    assert upscale(bundles["dynamic"], []) == []


# --- batches and tiles ----------------------------------------------------------------------------


def test_equal_shapes_share_batches(bundles: dict[str, Path], calls: Calls) -> None:
    images = [dark_noise(8, 8 if number % 3 else 12, number) for number in range(9)]
    results = upscale(bundles["dynamic"], images, color_fix="none")
    assert sorted(calls.batches("unet")) == [3, 3, 3]
    for image, result in zip(images, results, strict=True):
        assert_same(result.pixels, enlarged(image, shift_of(result)))


def test_merged_batches_share_a_bin(bundles: dict[str, Path], calls: Calls) -> None:
    images = [dark_noise(8, 8, number, brightest=(40, 255)[number % 2]) for number in range(6)]
    results = upscale(bundles["merged"], images)
    assert [result.bin.name for result in results] == ["n0-b0", "n1-b1"] * 3
    assert calls.batches("unet") == [3, 3]
    assert calls.batches("estimator") == [3, 3]


def test_fused_batches_share_a_degradation(bundles: dict[str, Path], calls: Calls) -> None:
    images = [dark_noise(8, 8, number) for number in range(5)]
    by_hand = upscale(bundles["fused"], images, noise=0.5, blur=0.5)
    assert calls.batches("unet") == [3, 2]
    assert {result.tiles for result in by_hand} == {1}
    calls.shapes.clear()
    results = upscale(bundles["fused"], images, color_fix="none")
    assert calls.batches("unet") == [1] * 5
    assert calls.batches("unet_weights") == [1] * 5
    for image, result in zip(images, results, strict=True):
        assert_same(result.pixels, enlarged(image, shift_of(result)))


def test_weights_are_computed_once_for_all_that_shares_a_degradation(
    bundles: dict[str, Path], calls: Calls
) -> None:
    picture, tiled = dark_noise(8, 8), dark_noise(30, 70)
    with Upscaler.open(bundles["fused"], "onnx", options=OPTIONS) as upscaler:
        for noise in (0.25, 0.5, 0.25, 0.5, 0.75, 0.25):  # two of them stay at a time
            asked = UpscaleSettings(noise=noise, blur=0.5, color_fix="none")
            for image, result in zip((picture, tiled), upscaler([picture, tiled], **asked), strict=True):
                assert_same(result.pixels, enlarged(image, expected_shift(noise, 0.5)))
    assert calls.batches("unet") == [1, 3] * 6
    assert calls.batches("vae_weights") == calls.batches("unet_weights") == [1] * 4


def test_bundles_whose_graphs_compute_their_weights_open_as_they_did(tmp_path: Path, calls: Calls) -> None:
    former, image = write_fake_bundle(tmp_path, "fused", weights_apart=False), dark_noise(30, 70)
    for noise in (0.25, 0.75):
        result = upscale(former, image, noise=noise, blur=0.5, color_fix="none")
        assert_same(result.pixels, enlarged(image, expected_shift(noise, 0.5)))
    assert calls.batches("modulation") == [1] * 2
    assert {shapes["unet_modulation"] for stage, shapes in calls.shapes if stage == "unet"} == {(1, 2, 3, 3)}


@pytest.mark.parametrize("mode", MODES)
def test_tiles_use_the_degradation_of_the_image(bundles: dict[str, Path], mode: LoraMode) -> None:
    image = dark_noise(50, 90)
    image[:, 45:] //= 3
    result = upscale(bundles[mode], image, color_fix="none")
    assert result.tiles == 8
    assert result.estimated == pytest.approx(estimate_of(image), abs=1e-5)
    assert_same(result.pixels, enlarged(image, shift_of(result)))


def test_tiles_fill_batches_across_rows(bundles: dict[str, Path], calls: Calls) -> None:
    upscale(bundles["dynamic"], dark_noise(50, 90))
    assert calls.batches("unet") == [3, 3, 2]
    assert {shapes["image"][1:] for stage, shapes in calls.shapes if stage == "vae_encoder"} == {(32, 32, 3)}


def test_overlap_is_a_quarter_of_the_tile() -> None:
    assert UpscaleOptions().overlap_of(128) == 32
    assert UpscaleOptions(tile=64, overlap=24).overlap_of(32) == 16
    assert UpscaleOptions(tile=64, overlap=0).overlap_of(64) == 0


@pytest.mark.parametrize("tile", [0, None])
def test_tiling_switched_off(bundles: dict[str, Path], calls: Calls, tile: int | None) -> None:
    image = dark_noise(50, 300)
    result = upscale(bundles["dynamic"], image, UpscaleOptions(tile=tile), color_fix="none")
    assert (result.tiles, calls.batches("unet")) == (1, [1])
    assert_same(result.pixels, enlarged(image, shift_of(result)))


def test_huge_images_are_estimated_from_windows(bundles: dict[str, Path], calls: Calls) -> None:
    ramp = np.linspace(0, 200, 700)[None, :, None].astype(np.uint8)
    image = np.broadcast_to(ramp, (400, 700, 3))
    result = upscale(bundles["dynamic"], image, UpscaleOptions(tile=256))
    windows = [shapes["image"] for stage, shapes in calls.shapes if stage == "estimator"]
    assert sum(shape[0] for shape in windows) <= 16
    assert {shape[1:] for shape in windows} == {(128, 128, 3)}
    assert result.estimated == pytest.approx(estimate_of(image), abs=0.02)


def test_times_add_up(bundles: dict[str, Path]) -> None:
    results = upscale(bundles["dynamic"], [dark_noise(8, 8, number) for number in range(3)])
    assert len({result.seconds["unet"] for result in results}) == 1


def test_several_threads(bundles: dict[str, Path]) -> None:
    images = [dark_noise(8 + 4 * number, 40, number) for number in range(6)]
    with Upscaler.open(bundles["merged"], options=OPTIONS) as upscaler, ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda image: upscaler(image, color_fix="none"), images))
    for image, result in zip(images, results, strict=True):
        assert_same(result.pixels, enlarged(image, shift_of(result)))


# --- the package ----------------------------------------------------------------------------------


def test_import_is_light() -> None:
    script = "import s3diff_runtime, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert not set(loaded.split()) & {"numpy", "pydantic", "PIL", "onnxruntime", "tokenizers"}


def test_upscaling_loads_no_framework(bundles: dict[str, Path]) -> None:
    script = f"""
import sys
import numpy as np
from s3diff_runtime import Upscaler
with Upscaler.open({str(bundles["prompts"])!r}) as upscaler:
    upscaler(np.full((8, 8, 3), 7, np.uint8), prompt="dark")
print(*{{name.partition('.')[0] for name in sys.modules}})
"""
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "openvino" in loaded.split()
    assert not set(loaded.split()) & {"torch", "onnx", "diffusers", "transformers", "peft"}


def test_package_has_what_it_names() -> None:
    for name in s3diff_runtime.__all__:
        assert getattr(s3diff_runtime, name).__name__ == name
    with pytest.raises(AttributeError, match=r"no attribute 'Downscaler'"):
        s3diff_runtime.Downscaler  # noqa: B018


def test_progress_counts_tiles(bundles: dict[str, Path]) -> None:
    told: list[tuple[int, int]] = []
    with Upscaler.open(bundles["dynamic"], options=OPTIONS) as upscaler:
        images = [dark_noise(20, 20), dark_noise(20, 20), dark_noise(20, 60)]
        results = upscaler(images, progress=lambda done, total: told.append((done, total)))
    assert [result.tiles for result in results] == [1, 1, 3]
    assert told == [(2, 5), (5, 5)]


def test_what_progress_raises_ends_the_work(bundles: dict[str, Path], calls: Calls) -> None:
    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with Upscaler.open(bundles["dynamic"], options=OPTIONS) as upscaler:
        with pytest.raises(InterruptedError):
            upscaler.upscale_pixels([dark_noise(20, 200)], progress=stop)
        assert calls.batches("unet") == [3]
        assert upscaler(dark_noise(20, 20)).tiles == 1


def test_estimate_gives_the_scores_that_are_applied(bundles: dict[str, Path]) -> None:
    image = dark_noise(20, 30)
    with Upscaler.open(bundles["merged"]) as upscaler:
        assert upscaler.estimate(image) == upscaler(image).applied
        with pytest.raises(s3diff_runtime.RequestError, match="expected uint8"):
            upscaler.estimate(image.astype(np.float32))
