"""Check a machine with a GPU: build bundles, build engines, compare with PyTorch, measure. Needs no network.

    python tools/gpu_check.py gpu-check

Takes the small model that ships and a random one of SD-Turbo's size, in every LoRA mode, through every
engine that is installed: ONNX Runtime on CUDA, TensorRT, TensorRT-RTX. Every step is a command of
s3diff-export in a process of its own with a limit of its own, so one that fails, crashes or runs out of time
is a finding and the others go on. The most valuable come first. Writes `OUT/gpu-check.json` after every step,
with all that the commands said, and prints a table; bundles and weights lie elsewhere (`--work`). The exit
code is 1 when an engine that ran does not compute what PyTorch computes, or none ran.

Where the project is not installed, PYTHONPATH=export:runtime:training:benchmarks does.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.steps import Outcome, Step, own_command, run_steps
from s3diff_runtime.engines.flavours import BUILDER_FLAVOURS
from s3diff_runtime.files import write_text
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode

_COMPARED = "against PyTorch in fp32"
_SETTINGS_TOOL = str(Path(__file__).with_name("cuda_settings.py"))
_MAKE_WEIGHTS = "full size: make random weights"
_BATCHES = "1,4,8"
"""On a CPU, which tries the check itself, the first alone."""
_SECONDS = 30
"""That a benchmark measures for."""
_QUICK, _LONG = 180.0, 600.0
"""Limits in seconds: of a step of the small model, and of what builds or loads a large one."""


def plan(work: Path, device: str, full_size: bool) -> list[Step]:
    """All steps: of the small model, and where asked for of one of SD-Turbo's size."""
    small = check_model("small", ("--demo",), (), work, device)
    if not full_size:
        return [*small, Step("full size", left_out="--small-only")]
    weights = work / "full-size"
    maker = (sys.executable, str(Path(__file__).with_name("make_full_size.py")), str(weights))
    files = {"base": "base", "checkpoint": "s3diff.pkl", "estimator": "de_net.pth"}
    options = [f"--{option}={weights / file}" for option, file in files.items()]
    making = Step(_MAKE_WEIGHTS, (*maker, "--device", device), limit=_LONG)
    large = check_model("full size", options, ("--no-verify",), work, device, (_MAKE_WEIGHTS,))
    return [*small, making, *large]


def check_model(
    name: str,
    weights: Sequence[str],
    build: Sequence[str],
    work: Path,
    device: str,
    needs: tuple[str, ...] = (),
) -> Iterator[Step]:
    """Build a bundle of every LoRA mode, and take all through every engine that this machine has.

    `weights` are the options that name them, `build` what that command needs besides, and `needs` the steps
    that make the weights.
    """
    limit = _LONG if needs else _QUICK
    bundles = {mode: str(work / f"{name} {mode}".replace(" ", "-")) for mode in LORA_MODES}
    first, *others = bundles.values()
    timed = ("--device", device, "--seconds", str(_SECONDS))
    batches = _BATCHES if device != "cpu" else _BATCHES.partition(",")[0]
    all_modes = (first, *(word for bundle in others for word in ("--vs", bundle)), *timed)

    def step(what: str, *words: str, needs: tuple[str, ...], limit: float = limit) -> Step:
        return Step(f"{name}: {what}", own_command(*words, "--json"), needs, limit, optional=True)

    ready: dict[tuple[str, LoraMode], str] = {}
    for mode, bundle in bundles.items():
        mode_options = ("--lora-mode", mode, *(("--bins", "1x1") if LORA_MODES[mode].has_bins else ()))
        making = ("build", *weights, *build, *mode_options, "-o", bundle, "--force")
        yield (made := step(f"build {mode}", *making, needs=needs))
        ready["onnx", mode] = made.name
    yield step(
        "onnx latency, beside PyTorch",
        *("bench", "latency", *all_modes, *weights, "--engine", "onnx", "--batch", batches),
        needs=tuple(ready.values()),
        limit=_LONG,
    )
    settings = (sys.executable, _SETTINGS_TOOL, first, "--device", device, "--seconds", str(_SECONDS))
    yield Step(
        f"{name}: settings of onnx", settings, (ready["onnx", next(iter(bundles))],), _LONG, optional=True
    )
    for flavour in BUILDER_FLAVOURS if device != "cpu" else ():
        for mode, bundle in bundles.items():
            engines, needed = ("engines", bundle, "--engine", flavour), (ready["onnx", mode],)
            yield (made := step(f"build {flavour} engines, {mode}", *engines, needs=needed, limit=_LONG))
            ready[flavour, mode] = made.name
        # ONNX Runtime runs beside it again, so that PyTorch need not.
        yield step(
            f"{flavour} latency, beside onnx",
            *("bench", "latency", *all_modes, "--engine", f"{flavour},onnx", "--batch", batches),
            needs=tuple(ready[flavour, mode] for mode in bundles),
            limit=_LONG,
        )
    for (engine, lora_mode), made_by in ready.items():
        runs = (bundles[lora_mode], *weights, "--engine", engine, "--device", device)
        yield step(f"{engine} {_COMPARED}, {lora_mode}", "verify", *runs, needs=(made_by,))
    for engine in dict.fromkeys(engine for engine, _ in ready):
        for batch in batches.split(","):
            runs = (first, *timed, "--engine", engine, "--batch", batch, "--callers", "1,2,4")
            needed = (ready[engine, next(iter(bundles))],)
            yield step(f"{engine} throughput, batch {batch}", "bench", "throughput", *runs, needs=needed)


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
@click.option("--minutes", default=40.0, show_default=True, help="For the whole check.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for bundles and weights, kept; else a temporary one.",
)
@click.option("--full-size/--small-only", default=True, show_default=True, help="Check SD-Turbo's size too.")
def main(output: Path, device: str, minutes: float, work: Path | None, full_size: bool) -> None:
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

    with TemporaryDirectory(prefix="gpu-check-") as temporary:
        planned = plan(work or Path(temporary), device, full_size)
        outcomes = run_steps(planned, finished, minutes * 60)
    table = Table("step", "", "time", "found", title=machine.name)
    for each in outcomes:
        table.add_row(each.name, each.status, f"{each.seconds:.0f} s", escape(each.reason or figure_of(each)))
    Console().print(table)
    click.echo(output / "gpu-check.json")
    if not passed(outcomes):
        raise click.ClickException("no engine passed; the table says why")


if __name__ == "__main__":
    main()
