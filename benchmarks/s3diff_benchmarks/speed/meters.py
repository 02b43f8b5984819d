"""Energy and memory of a GPU, where NVML tells them, and memory of a process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from s3diff_benchmarks.machine import nvml
from s3diff_runtime.engines.devices import Device

Counter = Callable[[], float | None]
"""Reads joules that only grow; None where they are not counted."""


class GpuMeter:
    """Reads the counters of the GPU of that number; without NVML (`ml`, initialised) there are none."""

    def __init__(self, ml: Any, number: int) -> None:  # noqa: ANN401 - nvidia-ml-py has no annotations
        self._ml = ml
        self._handle = ml and ml.nvmlDeviceGetHandleByIndex(number)
        self._idle = self._used()

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None where it is not counted.

        The counter goes on in steps of some milliseconds, so that only sums over many runs are exact.
        """
        if self._ml is None:
            return None
        try:
            return float(self._ml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._ml.NVMLError:
            return None

    def used_mib(self) -> float | None:
        """Memory in use now, of all programs, above what was in use when the meter was made."""
        return None if self._ml is None else (self._used() - self._idle) / 2**20

    def _used(self) -> int:
        return int(self._ml.nvmlDeviceGetMemoryInfo(self._handle).used) if self._ml else 0


@contextmanager
def energy(counter: Counter, spent: list[float]) -> Iterator[None]:
    """Append the joules of the block to a list, where they are counted."""
    before = counter()
    yield
    after = counter()
    if before is not None and after is not None:
        spent.append(after - before)


@contextmanager
def gpu_meter(device: str) -> Iterator[GpuMeter]:
    """The meter of a device such as `cuda:1`; for the CPU, or without NVML, one that has no counters.

    NVML numbers GPUs as CUDA does where CUDA_VISIBLE_DEVICES is not set.
    """
    kind, number = Device.parse(device)
    with nullcontext() if kind == "cpu" else nvml() as ml:
        yield GpuMeter(ml, number)
