"""OpenVINO against ONNX Runtime on the same graphs, what it refuses, and what it computes in."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino
import pytest
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.openvino_tools import F32, OPTIONS, count_compilations, noise, opened

from s3diff_runtime import BundleError, JobError, RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines import openvino_graphs
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.compiled_graphs import keep, read_kept
from s3diff_runtime.engines.cpu_options import CpuOptions, CpuPrecision
from s3diff_runtime.engines.interface import Value
from s3diff_runtime.engines.openvino import OpenVinoEngine, OpenVinoSession, _Requests
from s3diff_runtime.errors import OutOfMemory
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.vocabulary import ColorFix, Precision


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[LoraMode, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {mode: write_fake_bundle(folder / mode, mode, external_data=True) for mode in LORA_MODES}


@pytest.fixture(scope="module")
def fused(bundles: dict[LoraMode, Path]) -> Bundle:
    return Bundle.open(bundles["fused"])


# --- what it computes -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LORA_MODES)
@pytest.mark.parametrize("fix", ["wavelet", "none"])
def test_pictures_are_those_of_onnx_runtime(
    bundles: dict[LoraMode, Path], mode: LoraMode, fix: ColorFix
) -> None:
    """Small and odd sizes, tiles, and batches of several degradations."""
    images = [noise(*size, 3) for size in ((1, 1), (24, 17), (24, 17), (40, 90))]
    images[2] //= 3
    onnx = OPTIONS.but(cpu_precision="auto")
    with Upscaler.open(bundles[mode], "onnx", options=onnx) as reference:
        expected = reference(images, color_fix=fix)
    with Upscaler.open(bundles[mode], "openvino", options=OPTIONS) as upscaler:
        found = upscaler(images, color_fix=fix)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.engine, ours.precision, ours.bin) == ("openvino", "f32", theirs.bin)
        assert ours.applied == pytest.approx(theirs.applied, abs=1e-5)
        assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 1


def test_outputs_feed_the_next_session_and_outlive_it(fused: Bundle) -> None:
    image = noise(2, 8, 12, 3)
    session = opened(fused, "estimator")
    degradation = session.run({"image": image})["degradation"]
    session.run({"image": 255 - image})
    del session
    np.testing.assert_allclose(np.asarray(degradation), image.mean((1, 2))[:, :2] / 255, rtol=1e-5)
    modulation = opened(fused, "modulation").run({"degradation": degradation})
    assert list(modulation) == ["vae_modulation", "unet_modulation"]
    expected = np.asarray(degradation)[:, :, None, None] * np.ones((3, 3))
    np.testing.assert_allclose(np.asarray(modulation["unet_modulation"]), expected, rtol=1e-6)


def test_scalars_and_slices_are_taken_as_they_are(fused: Bundle) -> None:
    latent = np.random.default_rng(0).random((2, 3, 8, 6), np.float32)
    inputs: dict[str, Value] = {
        "latent": latent[:, :, ::2],
        "guidance": np.array(3, np.float32),
        "unet_weights.shift": np.zeros((1, 1, 1, 1), np.float32),
    }
    x0 = opened(fused, "unet").run(inputs)["x0"]
    np.testing.assert_allclose(np.asarray(x0), latent[:, :, ::2] + 0.25, rtol=1e-6)


def test_callers_on_several_threads_get_their_own_results(bundles: dict[LoraMode, Path]) -> None:
    images = [noise(8 + 4 * number, 16, 3) for number in range(4)] * 3
    with Upscaler.open(bundles["merged"], "openvino", options=OPTIONS) as upscaler:
        expected = [upscaler(image).pixels for image in images]
        with ThreadPoolExecutor(6) as threads:
            for found, pixels in zip(threads.map(upscaler, images), expected, strict=True):
                np.testing.assert_array_equal(found.pixels, pixels)


def test_a_picture_at_a_time_unless_more_are_asked_for(bundles: dict[LoraMode, Path]) -> None:
    """A batch takes memory on a CPU, and brings next to nothing."""
    for options, expected in ((UpscaleOptions(threads=1), 1), (UpscaleOptions(threads=1, batch=4), 4)):
        with Upscaler.open(bundles["merged"], "openvino", options=options) as upscaler:
            assert upscaler.options.batch == expected


# --- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "asked", "bundle", "expected"),
    [
        (["BF16"], "auto", "fp16", "bf16"),
        (["BF16"], "auto", "fp32", "f32"),
        ([], "auto", "fp16", "f32"),
        (["BF16"], "f32", "fp16", "f32"),
        (["BF16"], "bf16", "fp32", "bf16"),
    ],
)
def test_precision_is_the_processors_for_bundles_in_fp16(
    fused: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[str],
    asked: CpuPrecision,
    bundle: Precision,
    expected: str,
) -> None:
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", *capabilities])
    built = replace(fused, manifest=fused.manifest.model_copy(update={"precision": bundle}))
    assert OpenVinoEngine(CpuOptions(cpu_precision=asked), built).precision == expected


def test_bf16_of_a_processor_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32"])
    with pytest.raises(RequestError, match=r"bf16, and this processor has no .* --cpu-precision f32"):
        OpenVinoEngine(CpuOptions(cpu_precision="bf16"))


@pytest.mark.parametrize(("name", "device"), [("onnx", "cpu"), ("tensorrt", "cuda"), ("auto", "cuda")])
def test_precision_of_an_engine_that_has_none(fused: Bundle, name: str, device: str) -> None:
    with pytest.raises(RequestError, match=r"cpu_precision is f32, and ONNX Runtime|and TensorRT"):
        open_engine(fused, name, device, F32)


# --- what is kept for the next process ------------------------------------------------------------


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep all graphs, however small, in a cache of the test's own; returns its folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("s3diff_runtime.engines.compiled_graphs._LEAST", 0)
    return tmp_path / "s3diff-export" / "openvino"


def upscaled(bundle: Path, options: UpscaleOptions = OPTIONS) -> np.ndarray:
    with Upscaler.open(bundle, "openvino", options=options) as upscaler:
        return upscaler(noise(24, 17, 3)).pixels


@pytest.mark.parametrize("mode", LORA_MODES)
def test_a_second_start_compiles_nothing_and_computes_the_same(
    bundles: dict[LoraMode, Path], mode: LoraMode, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = count_compilations(monkeypatch)
    first = upscaled(bundles[mode])
    assert len(compiled) == len(list(caches.iterdir())) > 3
    np.testing.assert_array_equal(upscaled(bundles[mode]), first)
    assert len(compiled) == len(list(caches.iterdir()))


@pytest.mark.parametrize("changed", ["weights", "settings", "version", "processor", "rewriting"])
def test_what_was_compiled_otherwise_is_not_taken(
    fused: Bundle, caches: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    compiled = count_compilations(monkeypatch)
    spec, cpu, bundle = fused.manifest.stages["unet"], F32, fused
    graph = spec.graphs["shared"]
    inputs: dict[str, Value] = {
        "latent": np.ones((1, 3, 8, 8), np.float32),
        "guidance": np.array(1, np.float32),
        "unet_weights.shift": np.ones((1, 1, 1, 1), np.float32),
    }
    OpenVinoEngine(cpu, bundle).open(fused.folder / graph, spec).run(inputs)
    if changed == "weights":
        name = f"{graph}.data"
        files = fused.manifest.files | {
            name: fused.manifest.files[name].model_copy(update={"sha256": "0" * 64})
        }
        bundle = replace(fused, manifest=fused.manifest.model_copy(update={"files": files}))
    elif changed == "settings":
        cpu = CpuOptions(cpu_precision="f32", threads=2)
    elif changed == "version":
        monkeypatch.setattr(openvino, "get_version", lambda: "2027.0")
    elif changed == "rewriting":
        monkeypatch.setattr(openvino_graphs, "__file__", __file__)
    else:
        asked = openvino.Core.get_property
        monkeypatch.setattr(openvino.Core, "get_property", lambda *names: f"another {asked(*names)}")
    OpenVinoEngine(cpu, bundle).open(fused.folder / graph, spec).run(inputs)
    assert len(compiled) == 2
    assert len(list(caches.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "other bytes", "no graph"])
def test_a_damaged_file_is_made_anew(
    bundles: dict[LoraMode, Path], caches: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = upscaled(bundles["fused"])
    whole = {path: path.read_bytes() for path in caches.iterdir()}
    for path, content in whole.items():
        if damage == "cut":
            path.write_bytes(content[:50])
        elif damage == "other bytes":
            path.write_bytes(content[:-9] + bytes(9))
        else:  # as a version would leave it that calls itself by the same name
            path.unlink()
            keep(path, b"nonsense")
    compiled = count_compilations(monkeypatch)
    np.testing.assert_array_equal(upscaled(bundles["fused"]), first)
    assert len(compiled) == len(whole)
    assert set(caches.iterdir()) == whole.keys()
    assert all(len(read_kept(path) or b"") > len(b"nonsense") for path in whole)


def test_the_cache_keeps_its_limit_and_what_was_used_last(
    bundles: dict[LoraMode, Path], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscaled(bundles["fused"])
    files = sorted(caches.iterdir())
    for age, path in enumerate(files):
        os.utime(path, (1000 - age, 1000 - age))
    assert read_kept(files[-1])
    room = files[0].stat().st_size + files[-1].stat().st_size + 100
    monkeypatch.setattr("s3diff_runtime.engines.compiled_graphs._LIMIT", room)
    keep(caches / "new.compiled", b"")
    assert sorted(caches.iterdir()) == sorted([files[0], files[-1], caches / "new.compiled"])


def test_nothing_is_kept_of_graphs_of_another_size_or_where_nobody_may_write(
    bundles: dict[LoraMode, Path],
    caches: Path,
    leave_home: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = upscaled(bundles["fused"])
    shutil.rmtree(caches)
    for bound, size in (("_LEAST", 2**40), ("LARGE", 0)):
        with monkeypatch.context() as patched:
            patched.setattr(f"s3diff_runtime.engines.compiled_graphs.{bound}", size)
            upscaled(bundles["fused"])
            assert not caches.exists()
    caches.parent.rmdir()
    caches.parent.write_text("a file, where a folder should be")
    np.testing.assert_array_equal(upscaled(bundles["fused"]), first)
    leave_home()
    np.testing.assert_array_equal(upscaled(bundles["fused"]), first)


# --- choosing and refusing ------------------------------------------------------------------------


def test_auto_tells_what_it_took(fused: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "s3diff_runtime")
    engine, _ = open_engine(fused, cpu=F32)
    assert (engine.name, caplog.messages) == ("openvino", ["running on OpenVINO in f32"])


def test_auto_without_openvino_says_what_would_be_faster(
    fused: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    engine, _ = open_engine(fused)
    assert (engine.name, engine.precision) == ("onnx", None)
    (message,) = caplog.messages
    assert message.startswith("running on ONNX Runtime: OpenVINO is not installed: pip install 's3diff-exp")


def test_links_are_left_to_onnx_runtime(fused: Bundle, tmp_path: Path) -> None:
    for path in (path for path in fused.folder.rglob("*") if path.is_file()):
        link = tmp_path / path.relative_to(fused.folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    linked = Bundle(tmp_path, fused.manifest)
    assert open_engine(linked)[0].name == "onnx"
    with pytest.raises(RequestError, match=r"holds links, which OpenVINO does not follow; .*cp -rL"):
        open_engine(linked, "openvino")


def test_graph_that_is_no_graph(fused: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "unet.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(BundleError, match=r"cannot load .*unet.onnx .*use engine onnx") as error:
        OpenVinoEngine(F32).open(path, fused.manifest.stages["unet"])
    assert "\n" not in str(error.value)


def test_graph_of_another_stage(fused: Bundle) -> None:
    stages = fused.manifest.stages
    with pytest.raises(BundleError, match=r"has the inputs image uint8, .*the manifest says image uint8;"):
        OpenVinoEngine(F32).open(fused.folder / stages["vae_encoder"].graphs["shared"], stages["estimator"])


def test_failed_run_names_the_stage(fused: Bundle) -> None:
    two_weights: dict[str, Value] = {
        "image": noise(2, 8, 8, 3),
        "vae_weights.shift": np.zeros((2, 2, 1, 1), np.float32),
    }
    with pytest.raises(JobError, match=r"stage vae_encoder failed on cpu .*smaller tile") as error:
        opened(fused, "vae_encoder").run(two_weights)
    assert not isinstance(error.value, OutOfMemory)
    assert "\n" not in str(error.value)


def test_want_of_memory_is_told_apart(fused: Bundle) -> None:
    """As OpenVINO itself says it, of a tensor that no machine has room for."""
    session = opened(fused, "estimator")
    assert isinstance(session, OpenVinoSession)

    class Starved:
        def create_infer_request(self) -> object:
            return openvino.Tensor(openvino.Type.f32, openvino.Shape([1 << 50]))

    session._graphs[None] = _Requests(Starved())
    with pytest.raises(OutOfMemory, match=r"stage estimator failed on cpu for want of memory .*bad_alloc"):
        session.run({"image": noise(1, 8, 8, 3)})


def test_upscaling_loads_no_framework(bundles: dict[LoraMode, Path]) -> None:
    script = (
        "import sys, numpy; from s3diff_runtime import Upscaler\n"
        f"Upscaler.open({str(bundles['dynamic'])!r}, 'openvino')(numpy.zeros((8, 8, 3), numpy.uint8) + 9)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(ran.stdout.split()) & {"torch", "onnx", "onnxruntime", "diffusers", "transformers"}
