"""`s3diff-export build` and `verify`, from the command line to what the runtime makes of the bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.export.models import Files, photographs, tiny_network, write_files
from tests.training.small import SMALL_RANKS, random_checkpoint

from s3diff_benchmarks.speed.flops import bundle_work
from s3diff_export.build import BuildRequest, build
from s3diff_export.cli import cli, run
from s3diff_export.graphs.options import GraphOptions
from s3diff_runtime import RequestError as RuntimeRequestError
from s3diff_runtime import UpscaleOptions, Upscaler
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import BuildError, RequestError
from s3diff_training.checkpoints.native import write_checkpoint
from s3diff_training.data import from_uint8
from s3diff_training.network.base import BaseModel
from s3diff_training.network.model import S3Diff

IMAGE = photographs(1, 22, 30, seed=7)[0]
ONE_FIX = ("--color-fix", "wavelet")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line on arguments."""

    def call(*arguments: object) -> Outcome:
        code = run(cli, [str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return the options to verify on one small picture, which takes less time than the drawn ones."""
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(photographs(1, 17, 22, seed=5)[0]).save(folder / "one.png")
    return "--images", str(folder)


@pytest.fixture(scope="module")
def truth(networks: dict[str, S3Diff]) -> S3Diff:
    """Return the network that `files` hold."""
    return networks["f4"]


@pytest.fixture(scope="module")
def fused(files: Files, small: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a verified fused bundle once; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("built") / "fused.bundle"
    arguments = ["build", *files.arguments(), "-o", str(path), "--lora-mode", "fused", "--precision", "fp32"]
    assert run(cli, [*arguments, *small, "--color-fix", "wavelet", "--color-fix", "none"]) == 0
    return path


@pytest.fixture
def bundle(fused: Path, tmp_path: Path) -> Path:
    """Return a bundle of the test's own."""
    return Path(shutil.copytree(fused, tmp_path / "own.bundle"))


def unproven(files: Files, output: Path) -> BuildRequest:
    """Ask for a bundle without a comparison."""
    graphs = GraphOptions("fused", "fp32")
    return BuildRequest(output, files.source(), graphs, color_fixes=("wavelet",), verify=False)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_upscales_like(bundle: Path, network: S3Diff, **settings: Any) -> None:  # noqa: ANN401
    """Compare with PyTorch on an image, at most one grey level apart."""
    manifest = Manifest.read(bundle, "hashes")
    with Upscaler.open(bundle, options=UpscaleOptions(threads=1)) as upscaler:
        result = upscaler(IMAGE, **settings)
    scores = {"noise": result.applied["noise"], "blur": result.applied["blur"]}
    if result.bin is not None:
        scores = {"noise": result.bin.noise, "blur": result.bin.blur}
    names = {"prompt": "positive_prompt", "color_fix": "color_fix", "guidance": "guidance"}
    same = {names[name]: value for name, value in settings.items() if name in names}
    if manifest.guidance.mode == "off":
        same["guidance"] = 1.0
    restored = network.restore(from_uint8(IMAGE)[None], **scores, **same).image[0]
    expected = (restored.permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(result.pixels.astype(np.float32) - expected).max() <= 1
    assert np.ptp(result.pixels) > 20


def test_fused_with_two_colour_corrections(fused: Path, truth: S3Diff) -> None:
    manifest = Manifest.read(fused, "hashes")
    assert manifest.color_fixes == ("wavelet", "none")
    assert manifest.reports["parity"]["passed"] is True
    assert manifest.reports["build"]["peak_memory"] > 2**20
    assert_upscales_like(fused, truth)
    assert_upscales_like(fused, truth, noise=0.9, blur=0.1, guidance=1.5, color_fix="none")
    assert not [path for path in fused.parent.iterdir() if path != fused]


def test_work_is_counted_at_the_usual_scale(fused: Path) -> None:
    """Of the graphs for several scales, the one whose result the other stages see."""
    manifest = Manifest.read(fused)
    assert len(manifest.stages["enlarge"].graphs) > 1
    assert bundle_work(fused, manifest, 1, 16, 24)["finish_wavelet"].outputs == {"upscaled": (1, 64, 96, 3)}


def test_merged_bins_and_what_they_cost(
    command: Command,
    files: Files,
    truth: S3Diff,
    small: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("s3diff_export.verification.bin_costs.MEASURED_GRIDS", (1, 6))
    path = tmp_path / "merged.bundle"
    done = command(
        *("build", *files.arguments(), "-o", path, "--lora-mode", "merged", "--bins", "2x1"),
        *("--precision", "fp32", *ONE_FIX, "--json", *small),
    )
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["bundle"] == str(path)
    assert report["bytes"] == sum(
        len(data) for name, data in contents(path).items() if name != "manifest.json"
    )
    costs = {cost["bins"]: cost for cost in report["bins"]}
    assert costs["chosen"]["count"] == 2
    assert costs["1x1"]["epsilon_relative_mean"] > costs["6x6"]["epsilon_relative_mean"]
    assert costs["6x6"]["image_psnr_mean"] > costs["1x1"]["image_psnr_mean"]
    manifest = Manifest.read(path, "hashes")
    assert [bin.name for bin in manifest.bins] == ["noise025-blur050", "noise075-blur050"]
    assert set(manifest.stages["unet"].graphs) == {bin.name for bin in manifest.bins}
    assert set(manifest.stages["vae_decoder"].graphs) == {"shared"}
    assert "modulation" not in manifest.stages
    for noise in (0.1, 0.9):
        assert_upscales_like(path, truth, noise=noise, blur=0.2)


def test_dynamic_with_runtime_prompts(
    command: Command, files: Files, truth: S3Diff, small: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "dynamic.bundle"
    options = ("--prompts", "runtime", "--precision", "fp32", *ONE_FIX, *small)
    done = command("build", *files.arguments(), "-o", path, *options)
    assert done.code == 0, done.err
    assert done.out == f"{path}\n"
    assert "text_encoder" in Manifest.read(path).stages
    assert_upscales_like(path, truth)
    assert_upscales_like(path, truth, prompt="a lighthouse in the rain", guidance=1.5)


def test_without_guidance(
    command: Command, files: Files, truth: S3Diff, small: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "plain.bundle"
    options = ("--guidance", "off", "--lora-mode", "fused", "--precision", "fp32", *ONE_FIX, *small)
    done = command("build", *files.arguments(), "-o", path, *options)
    assert done.code == 0, done.err
    assert command("verify", path, *files.arguments(), *small).code == 0
    assert_upscales_like(path, truth)
    with Upscaler.open(path) as upscaler, pytest.raises(RuntimeRequestError, match="--guidance off"):
        upscaler(IMAGE, guidance=1.1)


# --- what is in the way, and what fails ------------------------------------------------------------


def test_only_bundles_are_replaced(files: Files, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    for output in (tmp_path / "letters", tmp_path / "letters" / "one.txt"):
        with pytest.raises(RequestError, match="is no bundle, and only a bundle is replaced"):
            build(unproven(files, output).but(force=True))
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"


def test_an_existing_output_is_kept_unless_forced(
    command: Command, files: Files, bundle: Path, small: tuple[str, str]
) -> None:
    before = contents(bundle)
    options = ("--no-verify", "--lora-mode", "fused", "--precision", "fp32", "--color-fix", "adain", *small)
    arguments = ("build", *files.arguments(), "-o", bundle, *options)
    refused = command(*arguments)
    assert refused.code == 2
    assert "--force" in refused.err
    assert contents(bundle) == before
    assert command(*arguments, "--force").code == 0
    manifest = Manifest.read(bundle, "hashes")
    assert manifest.color_fixes == ("adain",)
    assert "parity" not in manifest.reports
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_failing_gate_names_the_stage_and_keeps_the_older_bundle(
    command: Command, files: Files, bundle: Path, small: tuple[str, str]
) -> None:
    before = contents(bundle)
    failed = command(
        *("build", *files.arguments(), "-o", bundle, "--force", "--lora-mode", "fused"),
        *("--precision", "fp32", "--gate-epsilon", "1e-12", *ONE_FIX, *small),
    )
    assert failed.code == 1
    assert "epsilon_positive" in failed.err
    assert "nothing was published" in failed.err
    assert contents(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_an_interrupted_build_leaves_nothing(files: Files, tmp_path: Path) -> None:
    def interrupt(step: str) -> None:
        if step == "exporting unet":  # the stages before it are written
            assert len(contents(tmp_path)) > 3
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(unproven(files, tmp_path / "b"), progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_noticed_before_anything_is_written(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(RequestError, match="MiB free and the bundle needs about"):
        build(unproven(files, tmp_path / "deep" / "b"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--base", "nowhere", "--checkpoint", "{checkpoint}"), "nowhere"),
        (("--base", "{base}", "--checkpoint", "nowhere.safetensors"), "nowhere.safetensors"),
        (("--base", "{base}", "--checkpoint", "{base}/unet/config.json"), "config.json"),
        (("--base", "{base}"), "--checkpoint"),
        (("--demo", "--base", "{base}"), "--demo brings its own"),
        (("--demo", "--bins", "3by3"), "3x3"),
        (("--demo", "--gate-psnr", "-1"), "psnr is -1"),
        (("--demo", "--images", "nowhere"), "nowhere"),
        (("--demo", "--bins", "2x2"), "--bins does nothing with --lora-mode dynamic; expected merged"),
        (("--demo", "--no-verify", "--gate-psnr", "50"), "--gate-psnr without a comparison"),
    ],
)
def test_wrong_requests_exit_2(
    command: Command,
    files: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"base": str(files.base), "checkpoint": str(files.checkpoint)}
    refused = command("build", *(argument.format(**known) for argument in arguments), "-o", "out.bundle")
    assert refused.code == 2
    assert named in refused.err
    assert refused.err.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_all_options_that_would_do_nothing_are_told_at_once(command: Command, tmp_path: Path) -> None:
    refused = command(
        *("build", "--demo", "-o", tmp_path / "b", "--bins", "3x3", "--max-size", "512"),
        *("--no-verify", "--gate-epsilon", "1e-3"),
    )
    assert refused.code == 2
    for idle in ("--bins does nothing", "--gate-epsilon without", "--max-size without an engine"):
        assert idle in refused.err
    refused = command("verify", tmp_path / "b", "--layers", "--demo", "--device", "cuda", "--gate-psnr", "50")
    assert refused.code == 2
    assert "--demo, --gate-psnr, --device with --layers" in refused.err


def test_a_check_picture_of_one_colour_is_named(command: Command, tmp_path: Path) -> None:
    for name, image in (("a.png", IMAGE), ("b.png", np.full_like(IMAGE, 7))):
        Image.fromarray(image).save(tmp_path / name)
    refused = command("build", "--demo", "-o", tmp_path / "out.bundle", "--images", tmp_path)
    assert refused.code == 2
    assert "b.png is of one colour" in refused.err


def test_a_checkpoint_of_another_base_is_refused(
    command: Command, bases: dict[str, BaseModel], files: Files, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    write_checkpoint(random_checkpoint(bases["sd"], SMALL_RANKS), other)
    refused = command("build", "--base", files.base, "--checkpoint", other, "-o", tmp_path / "out.bundle")
    assert refused.code == 2
    assert "error: " in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_weights_that_give_nan_are_never_published(
    files: Files, bases: dict[str, BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_network(bases["f4"])
    network.vae.decoder.conv_in.bias.data[0] = float("nan")
    monkeypatch.setattr("s3diff_training.families.s3diff.build_network", lambda *_: network)
    with pytest.raises(BuildError, match="stage vae_decoder gives values that are not finite as decoded"):
        build(unproven(files, tmp_path / "b"))
    assert not list(tmp_path.iterdir())


# --- verify ----------------------------------------------------------------------------------------


def test_verify_writes_its_report_into_the_bundle(
    command: Command, files: Files, bundle: Path, small: tuple[str, str]
) -> None:
    done = command("verify", bundle, *files.arguments(), *small, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["passed"] is True
    rows = {row["quantity"]: row for row in report["quantities"]}
    assert {"epsilon_positive", "epsilon_negative", "x0", "latent", "decoded"} <= set(rows)
    assert all(row["relative"] <= row["limit"] for row in rows.values())
    assert Manifest.read(bundle, "hashes").reports["parity"] == report

    failed = command("verify", bundle, *files.arguments(), *small, "--gate-epsilon", "1e-12")
    assert failed.code == 1
    assert "epsilon_positive" in failed.err
    kept = Manifest.read(bundle, "hashes").reports["parity"]
    assert kept["passed"] is False
    assert "epsilon_positive" in kept["broken"]


def test_verify_refuses_other_weights(
    command: Command, bases: dict[str, BaseModel], bundle: Path, files: Files, tmp_path: Path
) -> None:
    before = contents(bundle)
    other = write_files(bases["f4"], tmp_path / "weights", seed=9)
    refused = command("verify", bundle, *other.arguments())
    assert refused.code == 2
    assert "built from other weights (checkpoint)" in refused.err
    assert files.checkpoint.name in refused.err
    assert contents(bundle) == before


def test_verify_refuses_an_altered_bundle(command: Command, bundle: Path, files: Files) -> None:
    graph = bundle / "onnx" / "unet.onnx.data"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    refused = command("verify", bundle, *files.arguments())
    assert refused.code == 2
    assert "unet.onnx.data" in refused.err
