"""Names of devices: `cpu`, `cuda`, `cuda:N`, and lists of them."""

import re
from typing import NamedTuple, Self

from s3diff_runtime.engines.flavours import DeviceKind
from s3diff_runtime.engines.tensorrt.cuda import Cuda, count_gpus, load_runtime
from s3diff_runtime.errors import RequestError, S3DiffError

_DEVICE = re.compile(r"(cpu|cuda)|cuda:(\d{1,3})")


class Device(NamedTuple):
    """What runs the network."""

    kind: DeviceKind
    number: int
    """Of the GPU, from 0; 0 for the CPU."""

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read `cpu`, `cuda` (the first GPU) or `cuda:N`. Raises `RequestError` for anything else."""
        match = _DEVICE.fullmatch(name)
        if not match:
            raise RequestError(f"unknown device {name!r}; expected cpu, cuda, or cuda:N")
        return cls("cpu" if match[1] == "cpu" else "cuda", int(match[2] or 0))

    def free_memory(self) -> int | None:
        """Bytes of a GPU that nobody holds; None for the CPU, and where CUDA's bindings cannot tell."""
        if self.kind == "cpu":
            return None
        try:
            cuda = Cuda(load_runtime(), self.number)
            cuda.activate()
            return cuda.free_memory()
        except S3DiffError:
            return None


def listed_devices(names: str) -> list[str]:
    """The devices of a list such as `cuda:0,cuda:1`; `all` stands for every GPU of this machine.

    Raises:
        RequestError: for an unknown device, one that is named twice, or `all` where there is no GPU.
    """
    if names == "all":
        return [f"cuda:{index}" for index in range(count_gpus(load_runtime()))]
    devices = [name.strip() for name in names.split(",")]
    parsed = [Device.parse(name) for name in devices]
    twice = sorted({name for name, device in zip(devices, parsed, strict=True) if parsed.count(device) > 1})
    if twice:
        raise RequestError(f"--device names {' and '.join(twice)} more than once; name each device once")
    return devices
