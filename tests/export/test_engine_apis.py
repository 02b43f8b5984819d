"""Every call of TensorRT 10, 11 and TensorRT-RTX exists in their real bindings, and says the right thing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.export.tensorrt_double import BINDINGS, CACHE, PLAN, Asked, members, tensorrt_double
from tests.export.tensorrt_signatures import NAMES, differences, is_property
from tests.runtime import fake_tensorrt
from tests.runtime.fake_cuda import FakeCuda

from s3diff_export.engines.building import EngineBuilder, EngineSource, require_builder
from s3diff_export.engines.options import EngineOptions
from s3diff_runtime.bundle.manifest import Stage
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.engines.flavours import FLAVOURS, BuilderFlavour
from s3diff_runtime.errors import BuildError, RequestError
from s3diff_runtime.vocabulary import Precision

STAGE = Stage(
    inputs=(
        TensorSpec(name="image", dtype="uint8", shape=("batch", "height", "width", 3)),
        TensorSpec(name="guidance", dtype="float32", shape=()),
    ),
    outputs=(TensorSpec(name="latent", dtype="float32", shape=("batch", 4, "height", "width")),),
    graphs={"shared": "onnx/vae_encoder.onnx"},
)
SHAPES = {
    "image": ((1, 1, 1, 3), (1, 128, 128, 3), (4, 256, 256, 3)),
    "guidance": ((), (), ()),
}
FULL = [binding for binding in BINDINGS if binding.startswith("tensorrt ")]
(RTX,) = set(BINDINGS) - set(FULL)
RUNTIME_CLASSES = ("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache")

Found = Callable[..., tuple[EngineBuilder, Asked]]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Found:
    """Find the bindings of a version as if they were installed beside a GPU."""

    def find(binding: str, **options: Any) -> tuple[EngineBuilder, Asked]:  # noqa: ANN401
        module, asked = tensorrt_double(binding, STAGE)
        flavour: BuilderFlavour = "tensorrt-rtx" if binding == RTX else "tensorrt"
        install(monkeypatch, flavour, module)
        return require_builder(EngineOptions(flavour, **options)), asked

    return find


def install(
    monkeypatch: pytest.MonkeyPatch, flavour: BuilderFlavour, module: ModuleType | None, gpus: int = 1
) -> None:
    """Let a package be installed, or not be for None, on a machine with GPUs."""
    monkeypatch.setitem(sys.modules, FLAVOURS[flavour].package, module)
    monkeypatch.setattr("cuda.bindings.runtime", FakeCuda(gpus=gpus))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "vae_encoder.onnx"
    path.write_bytes(b"read by the double as that of STAGE")
    return path


@pytest.mark.parametrize("binding", BINDINGS)
def test_builds_with_the_names_of_every_binding(binding: str, found: Found, graph: Path) -> None:
    builder, asked = found(binding, workspace_mib=512, optimization_level=4)
    told: list[str] = []
    built = builder.build(
        EngineSource(graph, STAGE, SHAPES, "vae_encoder", "fp16"), graph.with_suffix(".engine"), told.append
    )
    assert graph.with_suffix(".engine").read_bytes() == PLAN
    assert built.peak_memory > 2**20 and 0 <= built.parse_seconds <= built.seconds
    assert asked.profiles == [{"image": SHAPES["image"]}]  # inputs without free axes need no shape
    (config,) = asked.configs
    module = builder.tensorrt.module
    assert config.builder_optimization_level == 4
    assert config._pools == {module.MemoryPoolType.WORKSPACE: 512 * 2**20}


@pytest.mark.parametrize("binding", BINDINGS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_flags_of_every_binding(binding: str, precision: Precision, found: Found, graph: Path) -> None:
    """TF32 is set by default, and rounds what is to be fp32."""
    builder, asked = found(binding)
    source = EngineSource(graph, STAGE, SHAPES, "vae_encoder", precision)
    builder.build(source, graph.with_suffix(".engine"))
    expected = ["TF32"] if precision == "fp16" else []
    expected += ["REQUIRE_USER_ALLOCATION"] if binding == RTX else []
    assert sorted(flag.name for flag in asked.configs[0]._flags) == sorted(expected)


@pytest.mark.parametrize("binding", FULL)
def test_version_compatible_engines_hold_no_code_of_the_host(binding: str, found: Found, graph: Path) -> None:
    builder, asked = found(binding, version_compatible=True)
    builder.build(EngineSource(graph, STAGE, SHAPES, "unet", "fp16"), graph.with_suffix(".engine"))
    flags = {flag.name for flag in asked.configs[0]._flags}
    assert flags == {"TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"}


@pytest.mark.parametrize("binding", BINDINGS)
def test_exact_profiles_stand_before_the_one_for_all(binding: str, found: Found, graph: Path) -> None:
    builder, asked = found(binding)
    exact = tuple({"image": (count, 128, 128, 3), "guidance": ()} for count in (1, 4))
    source = EngineSource(graph, STAGE, SHAPES, "vae_encoder", "fp16", exact)
    builder.build(source, graph.with_suffix(".engine"))
    wanted = [((count, 128, 128, 3),) * 3 for count in (1, 4)]
    assert asked.profiles == [{"image": shapes} for shapes in (*wanted, SHAPES["image"])]


@pytest.mark.parametrize("binding", FULL)
def test_what_one_engine_measured_serves_the_next(binding: str, found: Found, graph: Path) -> None:
    builder, asked = found(binding)
    for _ in range(2):
        builder.build(EngineSource(graph, STAGE, SHAPES, "unet", "fp16"), graph.with_suffix(".engine"))
    assert [config._given for config in asked.configs] == [b"", CACHE]


@pytest.mark.parametrize("binding", BINDINGS)
def test_networks_are_typed_in_every_version(binding: str, found: Found, graph: Path) -> None:
    builder, asked = found(binding)
    builder.build(EngineSource(graph, STAGE, SHAPES, "vae_encoder", "fp16"), graph.with_suffix(".engine"))
    typed = 1 << int(builder.tensorrt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert asked.flags == [typed if binding.startswith("tensorrt 10.") else 0]


@pytest.mark.parametrize("binding", FULL)
def test_timing_cache_and_hardware_compatibility(
    binding: str, found: Found, graph: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "caches" / "a10.cache"
    options = {"timing_cache": cache, "hardware_compatibility": "ampere_plus"}
    for expected in (b"", CACHE):
        builder, asked = found(binding, **options)
        builder.build(EngineSource(graph, STAGE, SHAPES, "vae_encoder", "fp16"), graph.with_suffix(".engine"))
        (config,) = asked.configs
        levels = builder.tensorrt.module.HardwareCompatibilityLevel
        assert config.hardware_compatibility_level is levels.AMPERE_PLUS
        assert config._given == expected
        assert cache.read_bytes() == CACHE
    asked.refuses_cache = True
    with pytest.raises(RequestError, match=r"a10\.cache is no timing cache of tensorrt .* delete it"):
        builder.build(EngineSource(graph, STAGE, SHAPES, "vae_encoder", "fp16"), graph.with_suffix(".engine"))
    with pytest.raises(RequestError, match=r"could not read the timing cache .*: Is a directory"):
        found(binding, timing_cache=tmp_path)


def test_rtx_builds_for_compute_capabilities(found: Found, graph: Path) -> None:
    builder, asked = found(RTX, compute_capabilities=("12.0", "8.0", "8.0"))
    builder.build(EngineSource(graph, STAGE, SHAPES, "vae_encoder", "fp16"), graph.with_suffix(".engine"))
    (config,) = asked.configs
    capabilities = builder.tensorrt.module.ComputeCapability
    assert config._targets == {0: capabilities.SM80, 1: capabilities.SM120}
    assert builder.gpu is None
    with pytest.raises(
        RequestError, match=r"cannot build for compute capability 9\.0; expected some of 7\.5"
    ):
        found(RTX, compute_capabilities=("9.0", "8.9"))


@pytest.mark.parametrize("binding", FULL)
def test_failures_carry_what_tensorrt_said(binding: str, found: Found, graph: Path) -> None:
    builder, asked = found(binding)
    asked.fails_with = "Error Code 10: Could not find any implementation for node /conv_in/Conv."
    with pytest.raises(BuildError, match=r"stage unet: .*node /conv_in/Conv\..*--workspace-mib.*--max-size"):
        builder.build(EngineSource(graph, STAGE, SHAPES, "unet", "fp16"), graph.with_suffix(".engine"))
    assert not graph.with_suffix(".engine").exists()


def test_a_graph_that_is_not_the_manifests_is_refused(found: Found, graph: Path) -> None:
    builder, _ = found(FULL[-1])
    latent = TensorSpec(name="latent", dtype="float16", shape=("batch", 4, "height", "width"))
    other = STAGE.model_copy(update={"outputs": (latent,)})
    with pytest.raises(
        BuildError, match="outputs latent float32 of rank 4, the manifest says latent float16"
    ):
        builder.build(EngineSource(graph, other, SHAPES, "vae_encoder", "fp16"), graph.with_suffix(".engine"))


@pytest.mark.parametrize("version", ["8.6.1", "10.11.0.33"])
def test_older_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = tensorrt_double(FULL[0], STAGE)
    module.__version__ = version
    install(monkeypatch, "tensorrt", module)
    with pytest.raises(RequestError, match=rf"tensorrt {version} is too old, expected 10\.12 or later"):
        require_builder(EngineOptions("tensorrt"))


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "tensorrt", None)
    with pytest.raises(RequestError, match=r"pip install 's3diff-export\[tensorrt\]'"):
        require_builder(EngineOptions("tensorrt"))


def test_a_gpu_is_looked_for_before_anything_of_tensorrt_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = tensorrt_double(FULL[-1], STAGE)
    for name in ("Builder", "OnnxParser", "ILogger"):
        delattr(module, name)
    install(monkeypatch, "tensorrt", module, gpus=0)
    with pytest.raises(RequestError, match="builds on the GPU that is to run the engines: no usable GPU"):
        require_builder(EngineOptions("tensorrt"))


def test_the_installed_rtx_is_the_recorded_one() -> None:
    module = importlib.import_module("tensorrt_rtx")
    assert f"tensorrt_rtx {module.__version__}" == RTX, "run python tests/export/tensorrt_names.py"
    for name in ("Builder", "IBuilderConfig", "OnnxParser", "IProgressMonitor", "ITimingCache"):
        real = {member for member in dir(getattr(module, name)) if not member.startswith("_")}
        assert members(name, RTX) == real


@pytest.mark.parametrize("binding", NAMES["bindings"])
@pytest.mark.parametrize("name", RUNTIME_CLASSES)
def test_what_runs_engines_in_tests_is_called_as_in_every_binding(name: str, binding: str) -> None:
    fake = getattr(fake_tensorrt, name)
    assert [*differences(fake, binding)] == []
    optional = {"is_stream_capturable", "create_runtime_cache", "set_runtime_cache"}  # of TensorRT-RTX alone
    optional |= {"content", "serialize", "deserialize"} if name == "IRuntimeCache" else set()
    public = {member for member in vars(fake) if not member.startswith("_")} - optional
    assert {member for member in public if is_property(name, member, binding) is None} == set()


def test_calls_that_no_binding_takes_are_refused() -> None:
    module, _ = tensorrt_double(FULL[0], STAGE)
    config = module.Builder(None).create_builder_config()
    for call in (
        lambda: config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE),
        lambda: config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, "512"),
        lambda: config.set_flag(8),
        lambda: config.create_timing_cache(None),
    ):
        with pytest.raises(TypeError, match="takes"):
            call()


def test_the_double_has_no_other_names() -> None:
    module, _ = tensorrt_double(RTX, STAGE)
    config = module.Builder(None).create_builder_config()
    config.num_compute_capabilities = 1
    full, _ = tensorrt_double(FULL[0], STAGE)
    with pytest.raises(AttributeError, match="has no num_compute_capabilities"):
        full.Builder(None).create_builder_config().num_compute_capabilities = 1
    with pytest.raises(AttributeError):
        _ = full.ComputeCapability
