"""How long a new process takes to its first image, and how much memory it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any

from s3diff_benchmarks.report.model import Column, Table
from s3diff_runtime.errors import JobError

_LONGEST = 1800.0
"""Seconds after which a process is given up."""


@dataclass(frozen=True)
class Task:
    """What a new process opens: a bundle, or the network in PyTorch; and what it upscales.

    All fields are JSON types.
    """

    name: str
    device: str
    image: str
    bundle: str | None = None
    engine: str = "auto"
    threads: int | None = None
    """Of the CPU; None takes its cores."""
    weights: tuple[str, str, str | None] | None = None
    """Base, checkpoint and estimator, in place of a bundle."""


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
    found = [_run(task) for _ in range(times)]
    return ColdStart(**{name: _median([getattr(one, name) for one in found]) for name in asdict(found[0])})


def cold_start_table(found: Mapping[str, ColdStart], times: int) -> Table:
    """One row for each method."""
    timed = ("launch", "imports", "open", "first image", "second image")
    return Table(
        name="cold-start",
        title="A new process",
        columns=(
            Column(name="method"),
            Column(name="ready", unit="s", better="lower"),
            *(Column(name=name, unit="s") for name in timed),
            Column(name="host memory", unit="MiB", better="lower"),
            Column(name="device memory", unit="MiB", better="lower"),
        ),
        rows=tuple(
            (
                name,
                one.ready,
                *(getattr(one, each.replace(" ", "_")) for each in timed),
                one.host_mib,
                one.device_mib,
            )
            for name, one in found.items()
        ),
        note=(
            f"Medians of {times} processes, files in the page cache. ready: from the start of the process to "
            "the first image; host memory: the most that was resident."
        ),
    )


def _median(values: Sequence[Any]) -> Any:  # noqa: ANN401 - numbers, or None
    return None if None in values else median(values)


def _run(task: Task) -> ColdStart:
    command = [sys.executable, "-m", "s3diff_benchmarks.speed.cold_start"]
    given = json.dumps({"task": asdict(task), "started": monotonic()})
    try:
        ran = subprocess.run([*command, given], capture_output=True, text=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired as error:
        raise JobError(f"a new process with {task.name} had no image after {_LONGEST:.0f} s") from error
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        raise JobError(f"a new process with {task.name} failed: {lines[-1]}")
    return ColdStart(**json.loads(ran.stdout.splitlines()[-1]))


# --- in the new process: everything is imported where its time is taken ----------------------------


def _child(task: Task, started: float) -> ColdStart:
    """Monotonic time is the same in all processes of a machine."""
    launch, start = monotonic() - started, perf_counter()
    opener = _bundle_opener(task) if task.bundle else _pytorch_opener(task)
    imports = perf_counter() - start
    from s3diff_benchmarks.speed.meters import gpu_meter
    from s3diff_runtime.pictures.photograph import open_photograph

    image = open_photograph(task.image).pixels
    with ExitStack() as opened:
        meter = opened.enter_context(gpu_meter(task.device))
        opening = perf_counter()
        upscale = opener(opened)
        ready = perf_counter()
        upscale(image)
        first = perf_counter()
        upscale(image)
        return ColdStart(
            launch=launch,
            imports=imports,
            open=ready - opening,
            first_image=first - ready,
            second_image=perf_counter() - first,
            host_mib=_peak_host_mib(),
            device_mib=meter.used_mib if meter else None,
        )


def _bundle_opener(task: Task) -> Callable[[ExitStack], Callable[[Any], object]]:
    from s3diff_benchmarks.methods import Input, open_bundles
    from s3diff_runtime.upscale_options import UpscaleOptions

    def open_bundle(opened: ExitStack) -> Callable[[Any], object]:
        options = UpscaleOptions(tile=0, batch=1, threads=task.threads)
        bundles = open_bundles([Path(str(task.bundle))], [task.engine], task.device, options)
        (method,) = opened.enter_context(bundles).methods
        return lambda image: method([Input(image)])

    return open_bundle


def _pytorch_opener(task: Task) -> Callable[[ExitStack], Callable[[Any], object]]:
    import torch

    from s3diff_benchmarks.methods import Input
    from s3diff_benchmarks.pytorch_method import released
    from s3diff_training.weights import ModelSource

    if task.threads:
        torch.set_num_threads(task.threads)
    if task.weights is None:
        raise JobError(f"{task.name} names neither a bundle nor weights")
    base, checkpoint, estimator = task.weights

    def open_network(_opened: ExitStack) -> Callable[[Any], object]:
        weights = ModelSource(
            base=base, checkpoint=Path(checkpoint), estimator=Path(estimator) if estimator else None
        )
        method = released(weights.load().to(task.device))
        return lambda image: method([Input(image)])

    return open_network


def _peak_host_mib() -> float:
    """From Linux itself: what `getrusage` tells includes the parent, from which this process was forked."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    _given = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(asdict(_child(Task(**_given["task"]), _given["started"]))))
