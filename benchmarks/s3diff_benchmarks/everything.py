"""All of `bench all`: every benchmark of one bundle, and an index of them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from s3diff_benchmarks.report.output import FORMAT, JSON_NAME, Output, read_report
from s3diff_benchmarks.report.rendering import render
from s3diff_benchmarks.steps import Outcome, Step, own_command, run_steps
from s3diff_runtime.command_line import typed_command
from s3diff_runtime.errors import JobError
from s3diff_runtime.files import write_text
from s3diff_runtime.options import Options, argument, group, option

BENCHMARKS = ("latency", "throughput", "quality", "fidelity", "control")
"""In the order in which they run; also the names of their folders."""
INDEX_NAME = "index.json"
"""By which a folder of reports is known as ours."""
_BUNDLE = "demo.bundle"
_BUILD = "build"
_PHOTOGRAPH_SECONDS = 20.0
"""That the quality of one photograph takes on two cores, with every score and three methods."""
_LEISURE_SECONDS = 1200.0
"""From which on nothing is shortened."""
_NO_PHOTOGRAPHS = "no photographs; pass --lr FOLDER, and --hr FOLDER for scores against truth"


@dataclass(frozen=True)
class AllRequest(Options):
    """What is measured, and for how long."""

    bundle: Path | None = argument("Bundle to measure.", default=None)
    demo: bool = option(False, "Build and measure the small model that ships, in place of BUNDLE.")
    lr: Path | None = option(None, "Folder of low-resolution photographs, for the quality.")
    hr: Path | None = option(None, "Folder of their truths, with the same names.")
    minutes: float = option(8.0, "About how long all of it may take.", least=1)
    output: Output = group(Output)

    def problems(self) -> Iterator[str]:
        """What does not go together, and folders that are none."""
        if (self.bundle is None) != self.demo:
            yield "name a BUNDLE, or pass --demo for the small model that ships; one of the two"
        if self.hr is not None and self.lr is None:
            yield "--hr goes with --lr"
        for path in (self.bundle, self.lr, self.hr):
            if path is not None and not path.is_dir():
                yield f"{path} is no folder"
        if self.output.folder is None:
            yield "all benchmarks need a folder; name one with --output"


def run_all(request: AllRequest) -> None:
    """Run every benchmark on BUNDLE: latency, throughput, quality, fidelity and control.

    Each writes its report into a folder of its own below the output; index.md, and with --html
    index.html, show the first table of each and lead to the rest. A benchmark that fails is told, the
    others still run, and the exit code is then 1.

    \b
      s3diff-export bench all --demo -o bench-output --html
      s3diff-export bench all s3diff.bundle --lr RealSR/LR --hr RealSR/HR --minutes 30 -o bench-output

    Raises:
        RequestError: when the folder is in the way.
        JobError: when a benchmark failed; the others were run.
    """
    output, folder = request.output, Path(str(request.output.folder))
    output.check_folder(INDEX_NAME)
    write_index(folder, typed_command(), [], html=False)  # the folder is known as ours from now on
    for name in BENCHMARKS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("index.html", "index.md"):
        (folder / name).unlink(missing_ok=True)
    outcomes = run_steps(
        plan(request, folder), lambda found: write_index(folder, typed_command(), found, output.html)
    )
    if output.as_json:
        click.echo((folder / INDEX_NAME).read_text(encoding="utf-8"), nl=False)
    else:
        for outcome in outcomes:
            click.echo(f"{outcome.name}: {outcome.text}")
        click.echo(folder / ("index.html" if output.html else "index.md"))
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed:
        raise JobError(f"failed: {', '.join(failed)}; the other reports are in {folder}")


def plan(request: AllRequest, folder: Path) -> list[Step]:
    """All benchmarks with their options, each with a share of the time.

    Each report goes into the folder below `folder` that has the step's name. Of the shipped small model, the
    bundle is built first, and PyTorch runs beside it.
    """
    bundle, seconds = str(request.bundle or folder / _BUNDLE), request.minutes * 60
    hurried = seconds < _LEISURE_SECONDS
    weights = ["--demo"] if request.demo else []
    images = max(int(seconds * 0.25 / _PHOTOGRAPH_SECONDS), 1)
    truths = [f"--hr={request.hr}"] if request.hr else []
    options = {
        "latency": [*weights, f"--seconds={seconds * 0.2:.0f}", *["--cold-starts=1"] * hurried],
        "throughput": [f"--seconds={seconds * 0.15:.0f}", *["--callers=1,2,4,8"] * hurried],
        "quality": [f"--lr={request.lr}", *truths, *weights, f"--limit={images}"],
        "fidelity": [*weights, *["--quick"] * hurried],
        "control": [],
    }
    page = ["--html"] if request.output.html else []
    steps = [
        Step(
            name,
            own_command("bench", name, bundle, *options[name], "-o", str(folder / name), *page),
            needs=(_BUILD,),
            optional=name == "control",  # which some families refuse: they have no scores
            left_out="" if name != "quality" or request.lr else _NO_PHOTOGRAPHS,
        )
        for name in BENCHMARKS
    ]
    build = Step(_BUILD, own_command("build", "--demo", "-o", bundle, "--force"))
    return [build, *steps] if request.demo else steps


def write_index(folder: Path, command: str, steps: Sequence[Outcome], html: bool) -> None:
    """Write index.json, index.md and with `html` index.html above the folders of the steps' reports.

    Raises:
        RequestError: when a report cannot be read back.
        JobError: when the disk refuses.
    """
    made = [step.name for step in steps if step.status == "ok" and (folder / step.name / JSON_NAME).is_file()]
    reports = {name: read_report(folder / name) for name in made}
    told = [{**asdict(step), "report": step.name in made} for step in steps]
    index = {"format": FORMAT, "command": command, "steps": told}
    write_text(folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")
    for name in ("index.md", *(["index.html"] if html else [])):
        write_text(folder / name, render(name, command=command, steps=steps, reports=reports))
