"""Engines join a bundle whole or not at all, are kept where they fit, and are checked with the manifest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from tests.export.engine_bundles import QuickBuilder, contents, make_bundle, replace_file
from tests.export.models import Files
from tests.export.tensorrt_double import tensorrt_double
from tests.runtime.fake_cuda import FakeCuda

from s3diff_export.cli import cli, run
from s3diff_export.engines.adding import add_engines
from s3diff_export.engines.building import EngineBuilder
from s3diff_export.engines.options import BatchRange, EngineOptions, SizeRange
from s3diff_runtime import BundleError, JobError
from s3diff_runtime.bundle.engine_records import EngineSidecar
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import BuildError, RequestError
from s3diff_runtime.errors import JobError as TrainingJobError

ADA = EngineOptions("tensorrt-rtx", compute_capabilities=("8.9",))
STAGES = ("estimator", "enlarge", "vae_encoder", "unet", "vae_decoder", "finish_wavelet")


@pytest.fixture(scope="module")
def exported(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a merged bundle of one bin."""
    return make_bundle(files, "merged", tmp_path_factory.mktemp("exported"))


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    """Return a bundle of the test's own."""
    return Path(shutil.copytree(exported, tmp_path / "own.bundle"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> QuickBuilder:
    """Write plans at once; everything else is real."""
    builder = QuickBuilder()
    monkeypatch.setattr(EngineBuilder, "build", lambda self, *args: builder(*args))
    return builder


def folders(bundle: Path) -> set[str]:
    return {path.name for path in (bundle / "engines").iterdir()}


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest as JSON."""
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# --- what is built, and what is kept --------------------------------------------------------------


def test_engines_lie_where_the_manifest_says(bundle: Path, quick: QuickBuilder) -> None:
    before = contents(bundle)
    added = add_engines(bundle, ADA)
    (bin_,) = Manifest.read(bundle).bins
    name = added.engine_set.name
    bins = {"vae_encoder", "unet"}
    where = {stage: f"bins/{bin_.name}/{stage}" if stage in bins else stage for stage in STAGES}
    where["enlarge"] = "scales/x4/enlarge"
    expected = {f"engines/{name}/{path}{end}" for path in where.values() for end in (".engine", ".json")}
    after = contents(bundle)
    assert set(after) - set(before) == expected
    assert {path: data for path, data in after.items() if path in before} | {"manifest.json": b""} == {
        **before,
        "manifest.json": b"",
    }
    assert added.engine_set.graphs["unet"] == {bin_.name: f"engines/{name}/bins/{bin_.name}/unet.engine"}
    assert quick.built[1:3] == ["enlarge of x4", f"vae_encoder of {bin_.name}"]
    assert added.engine_set.identity.targets == ("8.9",)
    assert added.engine_set.identity.gpu is None
    Manifest.read(bundle, check="hashes")


def test_what_is_there_already_is_kept(bundle: Path, quick: QuickBuilder) -> None:
    add_engines(bundle, ADA)
    before, count = contents(bundle), len(quick.built)
    again = add_engines(bundle, ADA)
    assert len(quick.built) == count == len(STAGES)
    assert contents(bundle) == before
    assert all(report.reused and report.peak_memory is None for report in again.engines)
    assert {report.seconds for report in again.engines} == {0.25}


def test_only_changed_graphs_are_built_again(bundle: Path, quick: QuickBuilder) -> None:
    first = add_engines(bundle, ADA)
    plans = contents(bundle / "engines" / first.engine_set.name)
    model = onnx.load(bundle / "onnx/estimator.onnx", load_external_data=False)
    model.doc_string = "another graph"
    replace_file(bundle, "onnx/estimator.onnx", model.SerializeToString())
    quick.built.clear()
    second = add_engines(bundle, ADA)
    assert quick.built == ["estimator"]
    assert [report.stage for report in second.engines if not report.reused] == ["estimator"]
    assert folders(bundle) == {second.engine_set.name} != {first.engine_set.name}
    (only,) = Manifest.read(bundle, check="hashes").engines
    assert only == second.engine_set
    renewed = contents(bundle / "engines" / second.engine_set.name)
    assert {name for name in plans if renewed[name] != plans[name]} == {"estimator.engine", "estimator.json"}


def test_force_builds_all_again(bundle: Path, quick: QuickBuilder) -> None:
    first = add_engines(bundle, ADA)
    second = add_engines(bundle, ADA, force=True)
    assert quick.built == [*quick.built[: len(STAGES)]] * 2
    assert folders(bundle) == {second.engine_set.name}
    assert first.engine_set.identity == second.engine_set.identity
    Manifest.read(bundle, check="hashes")


@pytest.mark.parametrize(
    "other",
    [
        EngineOptions("tensorrt-rtx", compute_capabilities=("8.9", "12.0")),
        EngineOptions("tensorrt-rtx", SizeRange(max=(512, 512)), compute_capabilities=("8.9",)),
        EngineOptions("tensorrt-rtx", batch=BatchRange(1, 1, 8), compute_capabilities=("8.9",)),
        EngineOptions("tensorrt-rtx", optimization_level=5, compute_capabilities=("8.9",)),
    ],
)
def test_other_identities_are_added_beside(other: EngineOptions, bundle: Path, quick: QuickBuilder) -> None:
    first, second = add_engines(bundle, ADA), add_engines(bundle, other)
    assert len(quick.built) == 2 * len(STAGES)
    assert Manifest.read(bundle, check="hashes").engines == (first.engine_set, second.engine_set)
    assert folders(bundle) == {first.engine_set.name, second.engine_set.name}
    assert add_engines(bundle, ADA).engine_set == first.engine_set


def test_version_compatible_engines_are_for_the_lean_runtime(
    bundle: Path, quick: QuickBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator = Manifest.read(bundle).stages["estimator"]
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double("tensorrt 11.4.0.106", estimator)[0])
    monkeypatch.setattr("cuda.bindings.runtime", FakeCuda())
    flavours = []
    for compatible in (True, False):
        added = add_engines(bundle, EngineOptions("tensorrt", version_compatible=compatible))
        flavours.append(added.engine_set.identity.flavour)
        assert added.engine_set.identity.exact_batches == (1, 4)
        path = bundle / added.engine_set.graphs["estimator"]["shared"]
        sidecar = EngineSidecar.model_validate_json(path.with_suffix(".json").read_bytes())
        assert [shapes["image"][0] for shapes in sidecar.exact] == [1, 4]
    assert flavours == ["tensorrt-lean", "tensorrt"]


# --- what fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [BuildError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_failing_build_changes_nothing(error: BaseException, bundle: Path, quick: QuickBuilder) -> None:
    def fail(name: str) -> None:
        if name == "finish_wavelet":
            raise error

    quick.before = fail
    before = contents(bundle)
    expected = TrainingJobError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        add_engines(bundle, ADA)
    assert contents(bundle) == before
    assert not (bundle / "engines").exists()


def test_an_interrupted_publication_keeps_the_older_engines(
    bundle: Path, quick: QuickBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engines(bundle, ADA)
    before = contents(bundle)

    def full(self: Manifest, folder: Path) -> None:
        raise JobError("could not write the manifest: no space left on device")

    monkeypatch.setattr(Manifest, "write", full)
    for options, force in ((ADA, True), (EngineOptions("tensorrt-rtx"), False)):
        with pytest.raises(JobError):
            add_engines(bundle, options, force)
        assert contents(bundle) == before
        assert len(folders(bundle)) == 1


def test_a_killed_publication_leaves_a_whole_bundle(bundle: Path, quick: QuickBuilder) -> None:
    """The folder has its name and the manifest does not know it: what an ended process leaves."""
    added = add_engines(bundle, ADA)
    edit(bundle, lambda content: content.update(engines=[]))
    edit(
        bundle,
        lambda content: content.update(
            files={name: each for name, each in content["files"].items() if not name.startswith("engines/")}
        ),
    )
    Manifest.read(bundle, check="hashes")
    again = add_engines(bundle, ADA)
    assert again.engine_set.name == f"{added.engine_set.name}.2"
    Manifest.read(bundle, check="hashes")


def test_a_damaged_bundle_gets_no_engines(bundle: Path, quick: QuickBuilder) -> None:
    (bundle / "onnx/vae_decoder.onnx.data").write_bytes(b"other weights")
    with pytest.raises(BundleError, match=r"vae_decoder\.onnx\.data"):
        add_engines(bundle, ADA)
    assert not quick.built


def test_sizes_are_checked_before_any_work(bundle: Path, quick: QuickBuilder) -> None:
    with pytest.raises(RequestError, match="height 102 is no multiple of 4"):
        add_engines(bundle, EngineOptions("tensorrt-rtx", SizeRange(max=(102, 256))))
    assert not quick.built


# --- what the manifest must say -------------------------------------------------------------------


def _renamed(content: dict[str, Any]) -> None:
    content["engines"][0]["name"] = "elsewhere"


def _twice(content: dict[str, Any]) -> None:
    content["engines"] *= 2


def _without_a_stage(content: dict[str, Any]) -> None:
    del content["engines"][0]["graphs"]["estimator"]


def _other_bin(content: dict[str, Any]) -> None:
    graphs = content["engines"][0]["graphs"]
    graphs["unet"] = {"other": next(iter(graphs["unet"].values()))}


def _without_a_sidecar(content: dict[str, Any]) -> None:
    sidecar = next(name for name in content["files"] if name.endswith("estimator.json"))
    del content["files"][sidecar]


def _unaligned(content: dict[str, Any]) -> None:
    content["engines"][0]["identity"]["profile"]["width"]["opt"] = 130


def _other_precision(content: dict[str, Any]) -> None:
    content["engines"][0]["identity"]["precision"] = "fp32"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_renamed, "is no engine in engines/elsewhere"),
        (_twice, "names of engine sets must differ"),
        (_without_a_stage, "has other stages or bins than the bundle"),
        (_other_bin, "has other stages or bins than the bundle"),
        (_without_a_sidecar, r"estimator\.json' of engine set .* is missing in files"),
        (_unaligned, "has a side of 130, expected multiples of 4"),
        (_other_precision, "is fp32 and the bundle fp16"),
    ],
)
def test_inconsistent_engines_are_refused(
    change: Callable[[dict[str, Any]], None], problem: str, bundle: Path, quick: QuickBuilder
) -> None:
    add_engines(bundle, ADA)
    edit(bundle, change)
    with pytest.raises(BundleError, match=problem):
        Manifest.read(bundle)


def test_an_unknown_file_beside_engines_is_refused(bundle: Path, quick: QuickBuilder) -> None:
    name = add_engines(bundle, ADA).engine_set.name
    (bundle / "engines" / name / "other.engine").write_bytes(b"code")
    with pytest.raises(BundleError, match=r"other\.engine is not in the manifest"):
        Manifest.read(bundle)


# --- the command line -----------------------------------------------------------------------------


def test_the_command_adds_and_shows_engines(
    bundle: Path, quick: QuickBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["engines", str(bundle), "--engine", "tensorrt-rtx", "--compute-capability", "8.9"]
    assert run(cli, [*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bundle"] == str(bundle)
    assert [engine["stage"] for engine in report["engines"]] == list(STAGES)
    assert {engine["peak_memory"] for engine in report["engines"]} == {2**20}
    assert run(cli, arguments) == 0
    assert "kept" in capsys.readouterr().err
    assert run(cli, ["inspect", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert f"Engines {report['name']}" in shown
    assert "compute capability 8.9" in shown
    assert "4 to 256, tuned for 128" in shown


@pytest.mark.usefixtures("quick")
def test_a_build_brings_its_engines(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "with.bundle"
    arguments = ["build", *files.arguments(), "-o", str(path), "--no-verify", "--color-fix", "wavelet"]
    arguments += ["--lora-mode", "fused", "--engine", "tensorrt-rtx", "--max-batch", "2", "--json"]
    assert run(cli, arguments) == 0
    report = json.loads(capsys.readouterr().out)
    manifest = Manifest.read(path, check="hashes")
    assert report["engines"]["name"] == manifest.engines[0].name
    assert manifest.engines[0].identity.profile.batch.max == 2
    assert "building engines" in manifest.reports["build"]["seconds"]
    assert not [step for step in manifest.reports["build"]["seconds"] if "%" in step]


def test_a_build_whose_engines_fail_publishes_nothing(
    files: Files, tmp_path: Path, quick: QuickBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(name: str) -> None:
        raise BuildError(f"TensorRT could not build stage {name}")

    quick.before = fail
    path = tmp_path / "never.bundle"
    arguments = ["build", *files.arguments(), "-o", str(path), "--no-verify", "--color-fix", "wavelet"]
    assert run(cli, [*arguments, "--lora-mode", "fused", "--engine", "tensorrt-rtx"]) == 1
    assert "could not build stage estimator" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_engines_need_no_torch() -> None:
    """They are built on servers, where the tools of export are not installed."""
    script = (
        "import sys, s3diff_export.engines.adding; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "polygraphy", "diffusers"} & set(found.stdout.split())
