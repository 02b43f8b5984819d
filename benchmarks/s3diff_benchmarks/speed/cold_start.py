"""How long a new process takes to its first image, and how much memory it needs."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.errors import JobError
from s3diff_runtime.memory import process_memory

if TYPE_CHECKING:
    from s3diff_benchmarks.methods import Method
    from s3diff_training.weights import ModelSource

_LONGEST = 1800.0
"""Seconds after which a process is given up."""
_CHILD = "from s3diff_benchmarks.speed.cold_start import answer; answer()"


@dataclass(frozen=True)
class Task:
    """What a new process opens, a bundle or the network in PyTorch as released, and what it upscales."""

    name: str
    opens: "Path | ModelSource"
    image: Path
    device: str
    cpu: CpuOptions = field(default_factory=CpuOptions)
    engine: str = "auto"
    """Of a bundle."""


@dataclass(frozen=True)
class ColdStart:
    """What a new process took: seconds, and MiB."""

    launch: float
    """Until Python runs."""
    imports: float
    open: float
    first_image: float
    second_image: float
    host_mib: float
    """Most memory that the process ever held (resident)."""
    device_mib: float | None
    """Memory of the GPU, above what was in use before; None without one."""

    @property
    def ready(self) -> float:
        """From the start of the process to the first image."""
        return self.launch + self.imports + self.open + self.first_image


def measure_cold_start(task: Task, times: int) -> ColdStart:
    """Start a process for the task, several times; medians of each figure.

    Raises:
        JobError: when the process fails, with what it said last.
    """
    columns = zip(*(astuple(_run(task)) for _ in range(times)), strict=True)
    found: list[Any] = [None if None in column else median(column) for column in columns]
    return ColdStart(*found)


def _run(task: Task) -> ColdStart:
    command, given = [sys.executable, "-c", _CHILD], pickle.dumps((task, monotonic()))
    try:
        ran = subprocess.run(command, input=given, capture_output=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobError(f"a new process with {task.name} had no image after {_LONGEST:.0f} s") from error
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ran.returncode}"]
        raise JobError(f"a new process with {task.name} failed: {lines[-1]}")
    return ColdStart(**json.loads(ran.stdout.splitlines()[-1]))


# --- in the new process: everything is imported where its time is taken ----------------------------


def answer() -> None:
    """Do the task on standard input, and write what it took to standard output."""
    task, started = pickle.load(sys.stdin.buffer)
    launch, start = monotonic() - started, perf_counter()  # all processes of a machine share monotonic time
    open_method = _imported(task)
    imports = perf_counter() - start
    from s3diff_benchmarks.methods import Input
    from s3diff_benchmarks.speed.meters import gpu_meter
    from s3diff_runtime.pictures.photograph import open_photograph

    image = Input(open_photograph(task.image).pixels)
    with gpu_meter(task.device) as meter, ExitStack() as opened:
        opening = perf_counter()
        method = open_method(opened)
        ready = perf_counter()
        method([image])
        first = perf_counter()
        method([image])
        found = ColdStart(
            launch=launch,
            imports=imports,
            open=ready - opening,
            first_image=first - ready,
            second_image=perf_counter() - first,
            host_mib=process_memory("VmHWM") / 2**20,
            device_mib=meter.used_mib(),
        )
    sys.stdout.write(json.dumps(asdict(found)))


def _imported(task: Task) -> Callable[[ExitStack], "Method"]:
    """Import what the task needs, and return what opens it."""
    opens = task.opens
    if isinstance(opens, Path):
        from s3diff_benchmarks.methods import open_bundles
        from s3diff_runtime.upscale_options import UpscaleOptions

        options = UpscaleOptions(**asdict(task.cpu), tile=0, batch=1)
        bundles = open_bundles([opens], [task.engine], task.device, options)
        return lambda opened: opened.enter_context(bundles).methods[0]
    import torch

    from s3diff_benchmarks.pytorch_method import released

    if task.cpu.threads:
        torch.set_num_threads(task.cpu.threads)
    return lambda opened: released(opens.load().to(task.device))
