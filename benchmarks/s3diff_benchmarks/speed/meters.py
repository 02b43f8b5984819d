"""Energy and memory of a GPU, where NVML tells them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s3diff_benchmarks.machine import nvml
from s3diff_runtime.engines.devices import Device


class GpuMeter:
    """Reads one GPU's counters.

    Args:
        ml: NVML, initialised.
        handle: of the GPU.
    """

    def __init__(self, ml: Any, handle: Any) -> None:  # noqa: ANN401 - nvidia-ml-py has no annotations
        """See the class."""
        self._ml, self._handle = ml, handle
        self._idle = self._used()

    def joules(self) -> float | None:
        """Energy since the driver was loaded; None where the GPU does not count it.

        The counter goes on in steps of some milliseconds, so that only sums over many runs are exact.
        """
        try:
            return float(self._ml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._ml.NVMLError:
            return None

    @property
    def used_mib(self) -> float:
        """Memory in use now, of all programs, above what was in use when the meter was made."""
        return (self._used() - self._idle) / 2**20

    def _used(self) -> int:
        return int(self._ml.nvmlDeviceGetMemoryInfo(self._handle).used)


@contextmanager
def gpu_meter(device: str) -> Iterator[GpuMeter | None]:
    """The meter of a device such as `cuda:1`; None for the CPU, or without NVML.

    NVML numbers GPUs as CUDA does where CUDA_VISIBLE_DEVICES is not set.
    """
    kind, number = Device.parse(device)
    if kind == "cpu":
        yield None
        return
    with nvml() as ml:
        yield None if ml is None else GpuMeter(ml, ml.nvmlDeviceGetHandleByIndex(number))
