"""Chooses what runs a bundle: ONNX Runtime on its graphs, or TensorRT on its engines; nothing silently."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import get_args

from s3diff_runtime.bundle.engine_records import EngineIdentity, EngineSet, Flavour
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.interface import Engine
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.engines.tensorrt.api import TensorRt
from s3diff_runtime.engines.tensorrt.cuda import Cuda, load_runtime
from s3diff_runtime.engines.tensorrt.identity import mismatches
from s3diff_runtime.engines.tensorrt.session import TensorRtEngine
from s3diff_runtime.errors import RequestError

ENGINES: tuple[str, ...] = ("onnx", *get_args(Flavour))
"""What can be asked for by name; `auto` stands for the fastest that fits."""

_logger = logging.getLogger("s3diff_runtime")


def open_engine(
    bundle: Bundle, name: str = "auto", device: str = "cpu", threads: int | None = None
) -> tuple[Engine, Bundle]:
    """Find what runs a bundle here, and open it.

    On a GPU `auto` takes engines of the bundle that were built for this machine, or else ONNX Runtime, and
    then logs why no engine fitted. An engine that is named is taken or refused.

    Args:
        bundle: as opened.
        name: one of `ENGINES`, or `auto`.
        device: `cpu`, `cuda`, or `cuda:N`.
        threads: of ONNX Runtime on the CPU.

    Returns:
        The engine, and the bundle with the engines that it runs.

    Raises:
        RequestError: for an unknown name or device, a missing package, a device that the engine does not
            serve, or engines that were built for another machine: what was expected, what was found, and the
            command that builds them.
    """
    if name not in ("auto", *ENGINES):
        raise RequestError(f"unknown engine {name!r}; expected auto, {', '.join(ENGINES)}")
    kind, index = Device.parse(device)
    fitting = None
    if name in get_args(Flavour) or (name == "auto" and kind == "cuda" and bundle.manifest.engines):
        fitting = _fitting(bundle, name, device, index)
    if fitting is None:
        return OnnxEngine(device, threads), bundle
    engines, api, cuda = fitting
    chosen = replace(bundle, engines=engines)
    return TensorRtEngine(chosen, engines, api, cuda), chosen


def _fitting(bundle: Bundle, name: str, device: str, index: int) -> tuple[EngineSet, TensorRt, Cuda] | None:
    """The first set of engines that this machine can load; for `auto`, None when there is none.

    The GPU is looked at before TensorRT is: without one, TensorRT ends the process.
    """
    sets = [engines for engines in bundle.manifest.engines if name in ("auto", engines.identity.flavour)]
    build = f"s3diff-export engines {bundle.folder} --engine {sets[0].identity.flavour if sets else name}"
    if not sets:
        others = ", ".join(engines.name for engines in bundle.manifest.engines)
        only = f" (only {others})" if others else ""
        raise RequestError(f"{bundle.folder} has no engines for {name}{only}; build some with {build}")
    if Device.parse(device).kind != "cuda":
        raise RequestError(f"engine {name} runs on NVIDIA GPUs, and device {device} is none; use device cuda")
    problems: list[str] = []
    try:
        cuda = Cuda(load_runtime(), index)
        for engines in sets:
            api, found = _loadable(engines.identity, cuda)
            if api is not None:
                return engines, api, cuda
            problems.append(f"{engines.name}: {found}")
    except RequestError as error:
        if name != "auto":
            raise
        problems.append(str(error))
    message = f"no engines of {bundle.folder} fit this machine ({'; '.join(problems)})"
    if name != "auto":
        raise RequestError(f"{message}; build engines for it with {build}")
    _logger.warning("%s: running on ONNX Runtime; %s builds engines for it", message, build)
    return None


def _loadable(identity: EngineIdentity, cuda: Cuda) -> tuple[TensorRt | None, str]:
    """The TensorRT that loads such engines here, or why there is none."""
    try:
        api = TensorRt.load(identity.flavour)
    except RequestError as error:
        return None, str(error)
    problems = list(mismatches(identity, cuda.gpu, api.version))
    return (None, ", ".join(problems)) if problems else (api, "")
