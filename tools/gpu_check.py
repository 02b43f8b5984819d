"""Check a machine with a GPU: build bundles, build engines, compare with PyTorch, measure. Needs no network.

    python tools/gpu_check.py gpu-check

Takes the small model that ships and a random one of SD-Turbo's size through every engine that is
installed: ONNX Runtime on CUDA, TensorRT, TensorRT-RTX. Every step is a command of s3diff-export in a
process of its own, so one that fails, crashes or runs out of time is a finding and the others go on.
Writes `OUT/gpu-check.json` with all that the commands said, and prints a table. The exit code is 1 when
an engine that ran does not compute what PyTorch computes, or none ran.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
from rich.console import Console
from rich.table import Table

from s3diff_benchmarks.machine import Machine, describe_machine
from s3diff_runtime.files import replacing

Status = Literal["ok", "failed", "skipped"]

FLAVOURS = ("tensorrt", "tensorrt-rtx")
_LONGEST_REASON = 400


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    output: str
    """Of standard output: JSON where the command was asked for it."""
    error: str
    """The last line of standard error."""


@dataclass(frozen=True)
class Step:
    """One command of the check, and what became of it."""

    name: str
    command: tuple[str, ...]
    status: Status
    seconds: float = 0.0
    reason: str = ""
    """Why it failed or was skipped."""
    result: Any = None
    """The JSON that the command printed."""


@dataclass
class Check:
    """Runs the steps until the time is used up.

    Attributes:
        steps: what became of each, in order.

    Args:
        seconds: for all steps together.
        run: runs a command within a number of seconds; raises `subprocess.TimeoutExpired`.
        clock: in seconds.
    """

    seconds: float
    run: Callable[[Sequence[str], float], Ran]
    clock: Callable[[], float] = time.monotonic
    show: Callable[[Step], None] = lambda step: None
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The time runs from now."""
        self._end = self.clock() + self.seconds

    def __call__(self, name: str, command: Sequence[str], after: Step | None = None) -> Step:
        """Run a command; not when `after`, which it builds on, did not work, or the time is used up."""
        step = self._step(name, tuple(command), after)
        self.steps.append(step)
        self.show(step)
        return step

    def skip(self, name: str, reason: str) -> Step:
        """Note a step that is not run."""
        step = Step(name, (), "skipped", reason=reason)
        self.steps.append(step)
        self.show(step)
        return step

    def _step(self, name: str, command: tuple[str, ...], after: Step | None) -> Step:
        start = self.clock()
        if after is not None and after.status != "ok":
            return Step(name, command, "skipped", reason=f"{after.name} {after.status}")
        if start >= self._end:
            return Step(name, command, "skipped", reason=f"the {self.seconds:.0f} s of the check are used up")
        try:
            ran = self.run(command, self._end - start)
        except subprocess.TimeoutExpired:
            return Step(name, command, "failed", self.clock() - start, "out of time")
        seconds = self.clock() - start
        if ran.code == 2:  # a wrong request: this machine lacks what the step needs
            return Step(name, command, "skipped", seconds, ran.error)
        result = _parsed(ran.output)
        if ran.code:
            reason = ran.error or f"the process ended with code {ran.code}"
            return Step(name, command, "failed", seconds, reason, result)
        return Step(name, command, "ok", seconds, result=result)


def check_bundle(
    check: Check, name: str, build: Sequence[str], weights: Sequence[str], bundle: Path, device: str
) -> None:
    """Build one bundle, and take it through every engine.

    Args:
        check: runs the steps.
        name: of the model, for the steps' names.
        build: what `build` needs besides weights and output.
        weights: options that name the weights.
        bundle: to make.
        device: to run on.
    """
    built = check(f"{name}: build", _cli("build", *weights, *build, "-o", str(bundle), "--force"))
    engines = {"onnx": built}
    for flavour in FLAVOURS if device != "cpu" else ():
        command = _cli("engines", str(bundle), "--engine", flavour)
        engines[flavour] = check(f"{name}: build {flavour} engines", command, built)
    for engine, ready in engines.items():
        runs = (str(bundle), *weights, "--engine", engine, "--device", device)
        check(f"{name}: {engine} against PyTorch in fp32", _cli("verify", *runs), ready)
        sizes = ("--size", "128", "--batch", "1,4", "--seconds", "20", "--cold-starts", "1")
        check(f"{name}: {engine} latency", _cli("bench", "latency", *runs, *sizes), ready)


def report(check: Check, machine: Machine) -> dict[str, Any]:
    """All that was found, as JSON types."""
    return {
        "machine": machine.model_dump(mode="json"),
        "passed": passed(check.steps),
        "steps": [asdict(step) for step in check.steps],
    }


def passed(steps: Sequence[Step]) -> bool:
    """Whether some engine was compared with PyTorch, and all that were agree with it."""
    compared = [step for step in steps if "against PyTorch" in step.name and step.status != "skipped"]
    return bool(compared) and all(step.status == "ok" for step in compared)


def run_command(command: Sequence[str], seconds: float) -> Ran:
    """Run a command to its end, or kill it."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    lines = [line for line in ran.stderr.splitlines() if line.strip()]
    return Ran(ran.returncode, ran.stdout, lines[-1][:_LONGEST_REASON] if lines else "")


def _cli(*words: str) -> tuple[str, ...]:
    """A command of s3diff-export that answers in JSON."""
    return (str(Path(sys.executable).with_name("s3diff-export")), *words, "--json")


def _parsed(output: str) -> Any:  # noqa: ANN401 - whatever a command prints
    try:
        return json.loads(output)
    except ValueError:
        return output.strip() or None


def _rows(steps: Sequence[Step]) -> Iterator[tuple[str, ...]]:
    for step in steps:
        yield step.name, step.status, f"{step.seconds:.0f} s", step.reason or _figure(step)


def _figure(step: Step) -> str:
    """The figure of a step that people look for first."""
    result = step.result if isinstance(step.result, dict) else {}
    if "quantities" in result:
        psnr = [value for value in result["psnr"].values() if value is not None]
        worst = max(row["relative"] for row in result["quantities"] if row["quantity"].startswith("epsilon"))
        return f"ε relative {worst:.1e}" + (f", image {min(psnr):.1f} dB" if psnr else ", image identical")
    for table in result.get("tables", ()):
        names = [column["name"] for column in table["columns"]]
        if "median" in names:
            column = names.index("median")
            calls = [row for row in table["rows"] if "call" in row]
            return ", ".join(
                f"{row[0]} {row[column]:.3g} {table['columns'][column]['unit']}" for row in calls
            )
    if "engines" in result and isinstance(result["engines"], list):
        size = sum(engine["bytes"] for engine in result["engines"])
        return f"{len(result['engines'])} engines, {size / 2**20:.0f} MiB"
    return ""


@click.command(help=__doc__)
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--device", default="cuda", show_default=True, help="cuda, cuda:N, or cpu to try the check itself."
)
@click.option("--minutes", default=9.0, show_default=True, help="For the whole check.")
@click.option("--full-size/--small-only", default=True, show_default=True, help="Check SD-Turbo's size too.")
def main(output: Path, device: str, minutes: float, full_size: bool) -> None:
    """Run the check."""
    machine = describe_machine()
    if device != "cpu" and not machine.gpus:
        raise click.UsageError("no NVIDIA GPU here, or no driver; --device cpu tries the check itself")
    console = Console(stderr=True)
    check = Check(
        minutes * 60,
        run_command,
        show=lambda step: console.print(
            f"{step.status:8}{step.seconds:6.0f} s  {step.name}", highlight=False
        ),
    )
    output.mkdir(parents=True, exist_ok=True)
    check_bundle(check, "small", (), ("--demo",), output / "small.bundle", device)
    if full_size:
        weights = output / "full-size"
        maker = (sys.executable, str(Path(__file__).with_name("make_full_size.py")), str(weights))
        made = check("full size: make random weights", maker)
        files = {"base": "base", "checkpoint": "s3diff.pkl", "estimator": "de_net.pth"}
        options = [f"--{option}={weights / file}" for option, file in files.items()]
        if made.status == "ok":
            check_bundle(check, "full size", ("--no-verify",), options, output / "full-size.bundle", device)
        shutil.rmtree(weights, ignore_errors=True)
    else:
        check.skip("full size", "--small-only")
    with replacing(output / "gpu-check.json") as temporary:
        temporary.write_text(json.dumps(report(check, machine), indent=2, ensure_ascii=False) + "\n")
    table = Table("step", "", "time", "found", title=machine.name)
    for row in _rows(check.steps):
        table.add_row(*row)
    Console().print(table)
    click.echo(output / "gpu-check.json")
    if not passed(check.steps):
        raise click.ClickException("no engine passed; the table says why")


if __name__ == "__main__":
    main()
