"""Which engines are loaded from a bundle, and which sizes they take."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.fake_bundle import dark_noise, edit_manifest, file_records, write_fake_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import install_fakes

from s3diff_runtime import RequestError, UpscaleOptions, Upscaler
from s3diff_runtime.bundle.engine_records import Profile, Range
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.errors import BundleError


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """A GPU whose contract was kept and whose memory is free when the test ends."""
    cuda = FakeCuda()
    install_fakes(monkeypatch, cuda)
    yield cuda
    gc.collect()
    assert (cuda.violations, cuda.leaks()) == ([], [])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One without engines yet."""
    return write_fake_bundle(tmp_path, "dynamic")


# --- files ----------------------------------------------------------------------------------------


def test_altered_plans_are_never_loaded(bundle: Path, gpu: FakeCuda) -> None:
    """Though the size is right, and hashes were not asked for: a plan is executable."""
    engines = add_engines(bundle)
    opened_bundle = Bundle.open(bundle)
    plan = bundle / engines.graphs["unet"]["shared"]
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.write_bytes(content)
    engine, chosen = open_engine(opened_bundle, "tensorrt", "cuda")
    with pytest.raises(BundleError, match=r"unet.engine was altered \(sha256 "):
        engine.open(plan, chosen.manifest.stages["unet"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stage", "estimator", r"unet.engine .*is shared of stage estimator"),
        ("sha256", "0" * 64, r"is what was built"),
        ("inputs", [], r"has the inputs latent float32"),
        ("seconds", "long", r"does not describe an engine \(seconds: "),
    ],
)
def test_sidecar_that_contradicts(
    bundle: Path, gpu: FakeCuda, field: str, value: object, message: str
) -> None:
    sidecar = (bundle / add_engines(bundle).graphs["unet"]["shared"]).with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {field: value}))
    accept_all_files(bundle)
    with pytest.raises(BundleError, match=message):
        Upscaler.open(bundle, "tensorrt", "cuda")


def test_plan_that_tensorrt_refuses(bundle: Path, gpu: FakeCuda) -> None:
    plan = bundle / add_engines(bundle).graphs["unet"]["shared"]
    plan.write_bytes(b"nonsense")
    accept_all_files(bundle)
    sidecar = plan.with_suffix(".json")
    record = Bundle.open(bundle).manifest.files[plan.relative_to(bundle).as_posix()]
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": record.sha256}))
    accept_all_files(bundle)
    message = r"Serialization assertion failed; build engines on this machine with s3diff-export engines"
    with pytest.raises(BundleError, match=message):
        Upscaler.open(bundle, "tensorrt", "cuda")


def test_sizes_of_bins_are_those_of_engines(tmp_path: Path, gpu: FakeCuda) -> None:
    bundle = write_fake_bundle(tmp_path, "merged")
    add_engines(bundle)
    _engine, chosen = open_engine(Bundle.open(bundle), "tensorrt", "cuda")
    path = chosen.folder / chosen.graph("unet", "n0-b0")
    assert path.suffix == ".engine"
    assert chosen.size("unet", "n0-b0") == path.stat().st_size


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 100}, r"tile is 100, and the engines take from 4 to 96; .*wider profile"),
        ({"tile": 128}, r"tile is 128, and the engines take from 4 to 96"),  # the default, but asked for
        ({"batch": 7}, r"batch is 7, and the engines take up to 6"),
        ({"batch": 7, "tile": 0}, r"batch is 7"),
    ],
)
def test_options_beyond_the_profile(
    bundle: Path, gpu: FakeCuda, options: dict[str, Any], message: str
) -> None:
    add_engines(bundle)
    with pytest.raises(RequestError, match=message):
        Upscaler.open(bundle, "tensorrt", "cuda", UpscaleOptions(**options))


def test_images_beyond_the_profile(bundle: Path, gpu: FakeCuda) -> None:
    sides = Range(min=16, opt=32, max=64)
    add_engines(bundle, profile=Profile(batch=Range(min=1, opt=1, max=2), height=sides, width=sides))
    with Upscaler.open(bundle, "tensorrt", "cuda", UpscaleOptions(tile=0)) as upscaler:
        assert upscaler.options.batch == 2
        assert upscaler(dark_noise(13, 64)).pixels.shape == (52, 256, 3)
        with pytest.raises(RequestError, match=r"12 pixels high, .* take from 13 to 64; .*min-size"):
            upscaler(dark_noise(12, 20))
        with pytest.raises(RequestError, match=r"65 pixels wide, .* take from 13 to 64; use --tile"):
            upscaler(dark_noise(20, 65))
    with Upscaler.open(bundle, "tensorrt", "cuda") as upscaler:
        image = dark_noise(90, 150)
        assert upscaler.options.tile == 64
        assert upscaler(image).pixels.shape == (360, 600, 3), "large images are estimated in windows too"


def accept_all_files(bundle: Path) -> None:
    """Let the manifest name the files as they are."""
    files = {name: record.model_dump() for name, record in file_records(bundle)}
    edit_manifest(bundle, lambda content: content.update(files=files))
