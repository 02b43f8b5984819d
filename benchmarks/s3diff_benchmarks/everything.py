"""The command `all`: every benchmark of one bundle, and an index of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from s3diff_benchmarks.parts import PARTS, plan, run_command, run_part
from s3diff_benchmarks.report.index import Finished, write_index
from s3diff_benchmarks.report.output import INDEX_NAME, Output, output_options
from s3diff_runtime.command_line import typed_command
from s3diff_runtime.errors import JobError, RequestError

_PATH = click.Path(path_type=Path)
_BUNDLE = "demo.bundle"


@click.command("all")
@click.argument("bundle", type=_PATH, required=False)
@click.option(
    "--demo", is_flag=True, help="Build and measure the small model that ships, in place of BUNDLE."
)
@click.option("--lr", type=_PATH, help="Folder of low-resolution photographs, for the quality.")
@click.option("--hr", type=_PATH, help="Folder of their truths, with the same names.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=1),
    default=8,
    show_default=True,
    help="About how long all of it may take.",
)
@output_options
def all_benchmarks(
    bundle: Path | None, demo: bool, lr: Path | None, hr: Path | None, minutes: float, output: Output
) -> None:
    """Run every benchmark on BUNDLE: latency, throughput, quality, fidelity and control.

    Each writes its report into a folder of its own below the output; index.md, and with --html index.html,
    show the first table of each and lead to the rest. A benchmark that fails is told, the others still run,
    and the exit code is then 1.

    \b
      s3diff-export bench all --demo -o bench-output --html
      s3diff-export bench all s3diff.bundle --lr RealSR/LR --hr RealSR/HR --minutes 30 -o bench-output
    """
    folder = _check(bundle, demo, lr, hr, output)
    _clear(folder)
    finished: list[Finished] = []
    for part in _run_all(bundle or folder / _BUNDLE, demo, lr, hr, minutes * 60, folder, output.html):
        finished.append(part)
        write_index(folder, typed_command(), finished, output.html)
    if output.as_json:
        click.echo((folder / INDEX_NAME).read_text(encoding="utf-8"), nl=False)
    else:
        for part in finished:
            click.echo(f"{part.name}: {part.state}")
        click.echo(folder / ("index.html" if output.html else "index.md"))
    failed = [part.name for part in finished if not part.ok]
    if failed:
        raise JobError(f"failed: {', '.join(failed)}; the other reports are in {folder}")


def _check(bundle: Path | None, demo: bool, lr: Path | None, hr: Path | None, output: Output) -> Path:
    """The folder to write; raises `RequestError` with all that is wrong."""
    problems = []
    if (bundle is None) != demo:
        problems.append("name a BUNDLE, or pass --demo for the small model that ships; one of the two")
    if hr is not None and lr is None:
        problems.append("--hr goes with --lr")
    for path in (bundle, lr, hr):
        if path is not None and not path.is_dir():
            problems.append(f"{path} is no folder")
    if output.folder is None:
        problems.append("all benchmarks need a folder; name one with --output")
    try:
        output.check_folder(INDEX_NAME)
    except RequestError as error:
        problems.append(str(error))
    if problems or output.folder is None:
        raise RequestError("; ".join(problems))
    return output.folder


def _clear(folder: Path) -> None:
    """Make the folder, known as ours from now on, without the reports of an earlier run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobError(f"cannot make {folder}: {error.strerror}; check its permissions") from error
    write_index(folder, typed_command(), [], html=False)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    for name in ("index.html", "index.md"):
        (folder / name).unlink(missing_ok=True)


def _run_all(
    bundle: Path, demo: bool, lr: Path | None, hr: Path | None, seconds: float, folder: Path, html: bool
) -> Iterator[Finished]:
    """Every part when it has ended; nothing more once the demo bundle could not be built."""
    if demo:
        built = run_command("build", ["build", "--demo", "-o", str(bundle), "--force"])
        yield built
        if not built.ok:
            return
    for part in plan(bundle, demo, lr, hr, seconds):
        yield run_part(part, folder, html)
