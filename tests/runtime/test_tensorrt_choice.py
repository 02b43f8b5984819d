"""Which engine is chosen: what fits the machine, what is refused, and that nothing is replaced in silence."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.runtime.fake_bundle import write_fake_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import VERSION, install_fakes

from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.lanes import Lanes
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.errors import RequestError

pytestmark = pytest.mark.usefixtures("only_onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path, "dynamic")


class OnnxStandIn:
    """What `auto` falls back to on a GPU, where no ONNX Runtime for CUDA is installed."""

    name = "onnx"
    open = OnnxEngine.open
    precision: str | None = None

    def __init__(self, device: str, threads: int | None, exact: bool) -> None:
        self.device, self.lane = device, Lanes().lane


@pytest.fixture(autouse=True)
def _onnx_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3diff_runtime.engines.onnx.OnnxEngine", OnnxStandIn)


def imported_but(forbidden: str) -> Callable[[str], ModuleType]:
    """`importlib.import_module` for everything but one package."""
    real = importlib.import_module

    def import_module(name: str) -> ModuleType:
        assert name != forbidden
        return real(name)

    return import_module


def chosen(folder: Path, name: str = "auto", device: str = "cuda") -> tuple[str, str | None]:
    """Name of the engine, and of the set that it runs."""
    engine, bundle = open_engine(Bundle.open(folder), name, device)
    assert engine.device == ("cuda:0" if bundle.engines and device == "cuda" else device)
    return engine.name, bundle.engines.name if bundle.engines else None


# --- what fits ------------------------------------------------------------------------------------


def test_auto_takes_engines_that_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch, FakeCuda())
    assert chosen(folder) == ("onnx", None)
    add_engines(folder, version="9.9.9")
    add_engines(folder, "tensorrt-rtx", gpu=None)
    assert chosen(folder) == ("tensorrt-rtx", "tensorrt-rtx-1"), "the only set that fits"
    add_engines(folder)
    add_engines(folder)
    assert chosen(folder) == ("tensorrt", "tensorrt-2"), "the first set that fits of the fastest flavour"
    assert chosen(folder, "tensorrt-rtx") == ("tensorrt-rtx", "tensorrt-rtx-1")
    assert chosen(folder, "tensorrt") == ("tensorrt", "tensorrt-2")
    assert chosen(folder, "onnx") == ("onnx", None)
    assert chosen(folder, "auto", "cpu") == ("onnx", None)


@pytest.mark.parametrize(
    "identity",
    [
        {"targets": ("8.0", "8.9")},
        {"gpu": None},
        {"gpu": "Another GPU", "hardware_compatibility": "same_compute_capability"},
        {"gpu": "Another GPU", "targets": ("8.0",), "hardware_compatibility": "ampere_plus"},
        {"driver": "13.0"},
        {"driver": "12.9"},
    ],
)
def test_engines_that_fit(folder: Path, monkeypatch: pytest.MonkeyPatch, identity: dict[str, Any]) -> None:
    install_fakes(monkeypatch, FakeCuda())
    add_engines(folder, **identity)
    assert chosen(folder, "tensorrt") == ("tensorrt", "tensorrt-0")


MISFITS: dict[str, dict[str, Any]] = {
    "expected tensorrt 10.14.0, found 10.13.2.6": {"version": "10.14.0"},
    "expected compute capability 8.0 or 9.0, found 8.9 .Fake GPU.": {"targets": ("8.0", "9.0")},
    "expected the GPU Other GPU, found Fake GPU": {"gpu": "Other GPU"},
    "expected a driver for CUDA 13.2 or later, found one for 13.0": {"driver": "13.2"},
    "expected tensorrt 9, found .*, expected the GPU Other": {"version": "9", "gpu": "Other"},
    "expected compute capability 8.6, found 8.9": {
        "targets": ("8.6",),
        "hardware_compatibility": "same_compute_capability",
    },
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_engines_that_do_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, misfit: str
) -> None:
    """Named, they are refused; `auto` goes on with ONNX Runtime and says why."""
    install_fakes(monkeypatch, FakeCuda())
    add_engines(folder, **MISFITS[misfit])
    rebuild = rf"s3diff-export engines {folder} --engine tensorrt"
    with pytest.raises(RequestError, match=rf"tensorrt-0: {misfit}.*; build engines for it with {rebuild}$"):
        chosen(folder, "tensorrt")
    with caplog.at_level(logging.WARNING):
        assert chosen(folder) == ("onnx", None)
    assert "running on ONNX Runtime" in caplog.text
    assert "tensorrt-0: expected" in caplog.text


def test_ampere_engines_want_ampere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    cuda.capability = (7, 5)
    install_fakes(monkeypatch, cuda)
    add_engines(folder, hardware_compatibility="ampere_plus")
    with pytest.raises(RequestError, match=r"expected compute capability 8.0 or later, found 7.5"):
        chosen(folder, "tensorrt")


# --- what is missing ------------------------------------------------------------------------------


def test_bundle_without_such_engines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch, FakeCuda())
    with pytest.raises(RequestError, match=rf"has no engines for tensorrt; .*engines {folder} --eng"):
        chosen(folder, "tensorrt")
    add_engines(folder)
    with pytest.raises(RequestError, match=r"for tensorrt-rtx .only tensorrt-0.; .*--engine tensorrt-rtx"):
        chosen(folder, "tensorrt-rtx")


def test_engines_do_not_run_on_the_cpu(folder: Path) -> None:
    add_engines(folder)
    with pytest.raises(RequestError, match=r"runs on NVIDIA GPUs, and device cpu is none; use device cuda"):
        chosen(folder, "tensorrt", "cpu")


def test_missing_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch, FakeCuda(), {"tensorrt_rtx": VERSION})
    add_engines(folder)
    with pytest.raises(RequestError, match=r"pip install 's3diff-export\[tensorrt\]'"):
        chosen(folder, "tensorrt")
    assert chosen(folder) == ("onnx", None)


def test_missing_gpu_is_found_before_tensorrt_is_touched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a runtime without one would end the process."""
    install_fakes(monkeypatch, FakeCuda(gpus=0))
    add_engines(folder)
    monkeypatch.setattr("importlib.import_module", imported_but("tensorrt"))
    with pytest.raises(RequestError, match=r"no usable GPU was found"):
        chosen(folder, "tensorrt")
    assert chosen(folder) == ("onnx", None)


def test_unknown_engine(folder: Path) -> None:
    with pytest.raises(
        RequestError, match=r"unknown engine 'fast'; expected auto, onnx, openvino, tensorrt, tensorrt-"
    ):
        open_engine(Bundle.open(folder), "fast")


@pytest.mark.parametrize(("name", "expected"), [("auto", "openvino"), ("onnx", "onnx")])
def test_engines_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str) -> None:
    monkeypatch.undo()
    bundle = Bundle.open(folder)
    engine, same = open_engine(bundle, name, "cpu", CpuOptions(threads=1))
    assert (engine.name, engine.device, same) == (expected, "cpu", bundle)
    with engine.lane(Clock()) as lane:
        assert lane is not None


# --- the lean runtime -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["10.12.0", VERSION])
def test_the_lean_runtime_takes_engines_of_its_own_version_and_of_older_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    install_fakes(monkeypatch, FakeCuda(), {"tensorrt_lean": VERSION})
    add_engines(folder, "tensorrt-lean", version=version)
    assert chosen(folder) == chosen(folder, "tensorrt-lean") == ("tensorrt-lean", "tensorrt-lean-0")


def test_the_lean_runtime_refuses_newer_engines_and_those_that_are_not_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fakes(monkeypatch, FakeCuda())
    add_engines(folder)
    rebuild = f"s3diff-export engines {folder} --engine tensorrt --version-compatible"
    with pytest.raises(
        RequestError, match=rf"no engines for tensorrt-lean \(only tensorrt-0\); .*{rebuild}$"
    ):
        chosen(folder, "tensorrt-lean")
    add_engines(folder, "tensorrt-lean", version="11.0.0")
    expected = f"tensorrt-lean-1: expected tensorrt-lean 11.0.0 or later, found {VERSION}"
    with pytest.raises(RequestError, match=rf"{expected}.*{rebuild}$"):
        chosen(folder, "tensorrt-lean")


def test_without_the_lean_runtime_its_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch, FakeCuda(), {"tensorrt": VERSION})
    add_engines(folder, "tensorrt-lean")
    with pytest.raises(RequestError, match=r"pip install 's3diff-export\[tensorrt-lean\]'"):
        chosen(folder, "tensorrt-lean")
    assert chosen(folder) == ("onnx", None), "the full TensorRT of other engines is no substitute"


def test_the_full_runtime_is_taken_where_both_serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fakes(monkeypatch, FakeCuda())
    add_engines(folder, "tensorrt-lean")
    add_engines(folder)
    assert chosen(folder) == ("tensorrt", "tensorrt-1")
