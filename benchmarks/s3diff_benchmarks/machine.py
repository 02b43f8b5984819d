"""Where figures were taken: processor, memory, GPU, driver, clocks, versions."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from s3diff_runtime.engines.flavours import FLAVOURS

_PACKAGES = (
    "s3diff-export",
    "numpy",
    "pillow",
    *(flavour.package.replace("_", "-") for flavour in FLAVOURS.values()),
    "onnxruntime-gpu",
    "tensorrt-lean-cu13",
    "cuda-bindings",
    "torch",
    "diffusers",
    "peft",
)


class Record(BaseModel):
    """Whatever is written as JSON or read from a file of figures: frozen; unknown fields are errors.

    NaN and infinity are written as null.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Gpu(Record):
    """One GPU, as NVML describes it."""

    name: str
    driver: str
    cuda: str
    """Newest CUDA that the driver serves."""
    memory_mib: int
    sm_clock_mhz: int
    """At the moment of asking, as the next one."""
    memory_clock_mhz: int
    power_limit_w: float | None


class Machine(Record):
    """Everything of a machine that figures depend on."""

    processor: str
    cores: int
    """That this process may use."""
    memory_mib: int
    system: str
    python: str
    load: float
    """Average number of running programs over the minute before."""
    packages: dict[str, str]
    gpus: tuple[Gpu, ...] = ()

    @property
    def name(self) -> str:
        """The short name under which figures of this machine stand in tables."""
        if self.gpus:
            return self.gpus[0].name
        return f"{self.processor}, {self.cores} core{'s' if self.cores > 1 else ''}"


def describe_machine() -> Machine:
    """The machine that this process runs on, now."""
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        system=platform.platform(terse=True),
        python=platform.python_version(),
        load=round(os.getloadavg()[0], 2),
        packages=dict(_versions()),
        gpus=tuple(_gpus()),
    )


@contextmanager
def nvml() -> Iterator[Any]:
    """NVML, ready to be asked, or None where there is no NVIDIA driver or no nvidia-ml-py."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, or an error class of its own for every way of missing a driver
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _gpus() -> Iterator[Gpu]:
    with nvml() as ml:
        for index in range(ml.nvmlDeviceGetCount() if ml else 0):
            handle = ml.nvmlDeviceGetHandleByIndex(index)
            cuda = ml.nvmlSystemGetCudaDriverVersion()
            try:
                limit = ml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
            except ml.NVMLError:  # not every GPU has one
                limit = None
            yield Gpu(
                name=ml.nvmlDeviceGetName(handle),
                driver=ml.nvmlSystemGetDriverVersion(),
                cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
                memory_mib=ml.nvmlDeviceGetMemoryInfo(handle).total // 2**20,
                sm_clock_mhz=ml.nvmlDeviceGetClockInfo(handle, ml.NVML_CLOCK_SM),
                memory_clock_mhz=ml.nvmlDeviceGetClockInfo(handle, ml.NVML_CLOCK_MEM),
                power_limit_w=limit,
            )


def _processor() -> str:
    """The model's name, which Linux tells better than Python."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield package, version(package)
