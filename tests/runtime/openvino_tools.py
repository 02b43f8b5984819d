"""What the tests of OpenVINO share."""

from __future__ import annotations

import numpy as np
import openvino
import pytest

from s3diff_runtime import UpscaleOptions
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.interface import Session
from s3diff_runtime.engines.openvino import OpenVinoEngine

F32 = CpuOptions(cpu_precision="f32", threads=1)
OPTIONS = UpscaleOptions(tile=32, overlap=8, batch=3, threads=1, cpu_precision="f32")


def opened(bundle: Bundle, stage: str) -> Session:
    spec = bundle.manifest.stages[stage]
    return OpenVinoEngine(F32).open(bundle.folder / spec.graphs["shared"], spec)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def count_compilations(monkeypatch: pytest.MonkeyPatch) -> list[openvino.Model]:
    compile_model, compiled = openvino.Core.compile_model, list[openvino.Model]()

    def counting(core: openvino.Core, model: openvino.Model, *rest: object) -> openvino.CompiledModel:
        compiled.append(model)
        return compile_model(core, model, *rest)

    monkeypatch.setattr(openvino.Core, "compile_model", counting)
    return compiled
