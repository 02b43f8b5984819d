"""The parts of `bench all`: which benchmarks, with which options, and how each is run."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from s3diff_benchmarks.report.index import Finished
from s3diff_runtime.errors import JobError

PARTS = ("latency", "throughput", "quality", "fidelity", "control")
"""In the order in which they run; also the names of their folders."""

_ERROR = "error: "
"""How the command line begins the line that says what went wrong."""
_PHOTOGRAPH_SECONDS = 20.0
"""That the quality of one photograph takes on two cores, with every score and three methods."""
_LEISURE_SECONDS = 1200.0
"""From which on nothing is shortened."""
_STOP_SECONDS = 20.0
"""That a stopped part has for tidying up."""


@dataclass(frozen=True)
class Part:
    """One benchmark to run: its subcommand and arguments, or why it is left out."""

    name: str
    arguments: tuple[str, ...] = ()
    left_out: str = ""


def run_part(part: Part, folder: Path, html: bool) -> Finished:
    """Run a part in a process of its own, whose report goes into `folder`/`part.name`."""
    if part.left_out:
        return Finished(part.name, 0.0, left_out=part.left_out)
    arguments = [
        "bench",
        part.name,
        *part.arguments,
        "-o",
        str(folder / part.name),
        *(["--html"] if html else []),
    ]
    return run_command(part.name, arguments, report=True)


def run_command(name: str, arguments: Sequence[str], report: bool = False) -> Finished:
    """Run `s3diff-export` with those arguments; what it tells on standard error is passed on.

    A failure is not raised but in the result. When this process is interrupted, so is that one.

    Args:
        name: of the result.
        arguments: of the command line.
        report: whether a success means that there is a report.

    Raises:
        JobError: when the command is not installed.
    """
    script = Path(sysconfig.get_path("scripts")) / "s3diff-export"
    start, error = monotonic(), ""
    try:
        process = subprocess.Popen(
            [script, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as problem:
        raise JobError(f"cannot run {script}: {problem.strerror}; reinstall s3diff-export") from problem
    try:
        for line in process.stderr or ():
            sys.stderr.write(line)
            if line.startswith(_ERROR):
                error = line.removeprefix(_ERROR).strip()
        code = process.wait()
    finally:
        _stop(process)
    if code:
        return Finished(name, monotonic() - start, error=error or f"ended with exit code {code}")
    return Finished(name, monotonic() - start, report=report)


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process that still runs, politely at first."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr:
        process.stderr.close()


def plan(bundle: Path, demo: bool, lr: Path | None, hr: Path | None, seconds: float) -> Iterator[Part]:
    """All parts with their options.

    Args:
        bundle: to measure.
        demo: whether it is the shipped small model, whose PyTorch network then runs beside it.
        lr: folder of photographs; without one the quality is left out.
        hr: folder of their truths.
        seconds: for all of it, of which each part gets a share.
    """
    weights = ("--demo",) if demo else ()
    photographs = () if lr is None else ("--lr", str(lr), *(() if hr is None else ("--hr", str(hr))))
    measured = str(bundle)
    hurried = seconds < _LEISURE_SECONDS
    starts = ("--cold-starts", "1") if hurried else ()
    yield Part("latency", (measured, *weights, *starts, "--seconds", f"{seconds * 0.2:.0f}"))
    callers = ("--callers", "1,2,4,8") if hurried else ()
    yield Part("throughput", (measured, *callers, "--seconds", f"{seconds * 0.15:.0f}"))
    if photographs:
        images = max(int(seconds * 0.25 / _PHOTOGRAPH_SECONDS), 1)
        yield Part("quality", (measured, *photographs, *weights, "--limit", str(images)))
    else:
        yield Part(
            "quality", left_out="no photographs; pass --lr FOLDER, and --hr FOLDER for scores against truth"
        )
    yield Part("fidelity", (measured, *weights, *(("--quick",) if hurried else ())))
    yield Part("control", (measured,))
