"""Check a machine with a GPU: build bundles, build engines, compare with PyTorch, measure. Needs no network.

    python tools/gpu_check.py gpu-check

Takes the small model that ships and a random one of SD-Turbo's size through every engine that is
installed: ONNX Runtime on CUDA, TensorRT, TensorRT-RTX. Every step is a command of s3diff-export in a
process of its own, so one that fails, crashes or runs out of time is a finding and the others go on.
Writes `OUT/gpu-check.json` after every step, with all that the commands said, and prints a table. The exit
code is 1 when an engine that ran does not compute what PyTorch computes, or none ran.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.steps import Outcome, Step, own_command, run_steps
from s3diff_runtime.files import write_text

FLAVOURS = ("tensorrt", "tensorrt-rtx")
_COMPARED = "against PyTorch in fp32"
_MAKE_WEIGHTS = "full size: make random weights"
_WEIGHTS = "full-size"
"""The folder of the large model's weights, while the check runs."""


def plan(output: Path, device: str, full_size: bool) -> list[Step]:
    """All steps: of the small model, and where asked for of one of SD-Turbo's size."""
    small = check_bundle("small", (), ("--demo",), output / "small.bundle", device)
    if not full_size:
        return [*small, Step("full size", left_out="--small-only")]
    weights = output / _WEIGHTS
    maker = (sys.executable, str(Path(__file__).with_name("make_full_size.py")), str(weights))
    files = {"base": "base", "checkpoint": "s3diff.pkl", "estimator": "de_net.pth"}
    options = [f"--{option}={weights / file}" for option, file in files.items()]
    bundle = output / "full-size.bundle"
    large = check_bundle("full size", ("--no-verify",), options, bundle, device, _MAKE_WEIGHTS)
    return [*small, Step(_MAKE_WEIGHTS, maker), *large]


def check_bundle(
    name: str, build: Sequence[str], weights: Sequence[str], bundle: Path, device: str, needs: str = ""
) -> Iterator[Step]:
    """Build one bundle, and take it through every engine; what this machine lacks is skipped.

    `build` is what that command needs besides the options that name the weights, and `needs` the step that
    makes them.
    """

    def step(what: str, *words: str, needs: str) -> Step:
        return Step(f"{name}: {what}", own_command(*words, "--json"), needs, optional=True)

    built = step("build", "build", *weights, *build, "-o", str(bundle), "--force", needs=needs)
    yield built
    ready = {"onnx": built.name}
    for flavour in FLAVOURS if device != "cpu" else ():
        engines = step(
            f"build {flavour} engines", "engines", str(bundle), "--engine", flavour, needs=built.name
        )
        ready[flavour] = engines.name
        yield engines
    for engine, needed in ready.items():
        runs = (str(bundle), *weights, "--engine", engine, "--device", device)
        yield step(f"{engine} {_COMPARED}", "verify", *runs, needs=needed)
        sizes = ("--size", "128", "--batch", "1,4", "--seconds", "20", "--cold-starts", "1")
        yield step(f"{engine} latency", "bench", "latency", *runs, *sizes, needs=needed)


def passed(outcomes: Sequence[Outcome]) -> bool:
    """Whether some engine was compared with PyTorch, and all that were agree with it."""
    compared = [each for each in outcomes if _COMPARED in each.name and each.status != "skipped"]
    return bool(compared) and all(each.status == "ok" for each in compared)


def figure_of(outcome: Outcome) -> str:
    """The figure of an outcome that people look for first."""
    result = outcome.result if isinstance(outcome.result, dict) else {}
    if "quantities" in result:
        psnr = [value for value in result["psnr"].values() if value is not None]
        worst = max(row["relative"] for row in result["quantities"] if row["quantity"].startswith("epsilon"))
        return f"ε relative {worst:.1e}" + (f", image {min(psnr):.1f} dB" if psnr else ", image identical")
    for table in result.get("tables", ()):
        units = {column["name"]: column["unit"] for column in table["columns"]}
        if "median" in units:
            rows = (dict(zip(units, row, strict=True)) for row in table["rows"] if "call" in row)
            return ", ".join(f"{row['method']} {row['median']:.3g} {units['median']}" for row in rows)
    if isinstance(result.get("engines"), list):
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

    def finished(outcomes: Sequence[Outcome]) -> None:
        steps = [asdict(each) for each in outcomes]
        report = {"machine": machine.model_dump(mode="json"), "passed": passed(outcomes), "steps": steps}
        write_text(output / "gpu-check.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        last = outcomes[-1]
        console.print(f"{last.status:8}{last.seconds:6.0f} s  {last.name}", highlight=False)

    outcomes = run_steps(plan(output, device, full_size), finished, minutes * 60)
    shutil.rmtree(output / _WEIGHTS, ignore_errors=True)
    table = Table("step", "", "time", "found", title=machine.name)
    for each in outcomes:
        table.add_row(each.name, each.status, f"{each.seconds:.0f} s", escape(each.reason or figure_of(each)))
    Console().print(table)
    click.echo(output / "gpu-check.json")
    if not passed(outcomes):
        raise click.ClickException("no engine passed; the table says why")


if __name__ == "__main__":
    main()
