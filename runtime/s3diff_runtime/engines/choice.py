"""Chooses what runs a bundle, of the flavours in their table; nothing is replaced silently."""

import importlib
import logging
from dataclasses import replace

from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.flavours import FLAVOURS, FlavourTraits
from s3diff_runtime.engines.interface import Engine
from s3diff_runtime.errors import RequestError

ENGINES: tuple[str, ...] = tuple(sorted(FLAVOURS))
"""What can be asked for by name; `auto` stands for the fastest that fits."""
_DEVICES = {"cpu": "CPUs", "cuda": "NVIDIA GPUs"}

_logger = logging.getLogger("s3diff_runtime")


def open_engine(
    bundle: Bundle, name: str = "auto", device: str = "cpu", cpu: CpuOptions | None = None
) -> tuple[Engine, Bundle]:
    """Find what runs a bundle here, and open it.

    `auto` takes the fastest flavour that serves the device: one that runs engines of the bundle only where
    it has some that were built for this machine. It logs what it took, and why nothing faster. An engine that
    is named is taken or refused.

    Args:
        bundle: as opened.
        name: one of `ENGINES`, or `auto`.
        device: `cpu`, `cuda`, or `cuda:N`.
        cpu: threads and precision of engines on the CPU.

    Returns:
        The engine, and the bundle with the engines that it runs.

    Raises:
        RequestError: for an unknown name or device, a missing package, a device that the engine does not
            serve, a precision that it does not choose, or engines that were built for another machine: what
            was expected, what was found, and the command that builds them.
    """
    cpu = cpu or CpuOptions()
    if name not in ("auto", *ENGINES):
        raise RequestError(f"unknown engine {name!r}; expected auto, {', '.join(ENGINES)}")
    kind = Device.parse(device).kind
    if name != "auto":
        flavour = FLAVOURS[name]
        if kind not in flavour.devices:
            served = " and ".join(_DEVICES[each] for each in flavour.devices)
            raise RequestError(
                f"engine {name} runs on {served}, and device {device} is none; "
                f"use device {' or '.join(flavour.devices)}"
            )
        return _opened(bundle, flavour, device, cpu)
    refusals: list[str] = []
    compiled = {engines.identity.flavour for engines in bundle.manifest.engines}
    for flavour in FLAVOURS.values():
        if kind not in flavour.devices or (flavour.is_compiled and flavour.name not in compiled):
            continue
        try:
            found = _opened(bundle, flavour, device, cpu)
        except RequestError as error:
            refusals.append(str(error))
            continue
        level = logging.WARNING if refusals else logging.INFO
        precision = found[0].precision
        running = f"running on {flavour.title}{f' in {precision}' if precision else ''}"
        _logger.log(level, "%s", ": ".join([running, *refusals]))
        return found
    raise RequestError("; ".join(refusals))


def _opened(bundle: Bundle, flavour: FlavourTraits, device: str, cpu: CpuOptions) -> tuple[Engine, Bundle]:
    if cpu.cpu_precision != "auto" and not flavour.chooses_precision:
        choosers = " or ".join(each.name for each in FLAVOURS.values() if each.chooses_precision)
        raise RequestError(
            f"cpu_precision is {cpu.cpu_precision}, and {flavour.title} computes in the types of the graphs; "
            f"leave it out, or use engine {choosers} on device cpu"
        )
    module = importlib.import_module(flavour.opened_by)
    engine, engines = module.open_engine(bundle, flavour, device, cpu)
    cuda_forms = flavour.reads_cuda_forms and Device.parse(device).kind == "cuda"
    return engine, replace(bundle, engines=engines, cuda_forms=cuda_forms)
