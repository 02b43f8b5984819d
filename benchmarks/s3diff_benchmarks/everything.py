"""All of `bench all`: every benchmark of one bundle, and an index of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from s3diff_benchmarks.parts import PARTS, plan, run_command, run_part
from s3diff_benchmarks.report.index import Finished, write_index
from s3diff_benchmarks.report.output import INDEX_NAME, Output
from s3diff_runtime.command_line import typed_command
from s3diff_runtime.errors import JobError
from s3diff_runtime.options import Options, argument, group, option

_BUNDLE = "demo.bundle"


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
    """Run every benchmark, write the index after each, and tell what became of them.

    Raises:
        RequestError: when the folder is in the way.
        JobError: when a benchmark failed; the others were run.
    """
    output = request.output
    output.check_folder(INDEX_NAME)
    folder = Path(str(output.folder))
    _clear(folder)
    finished: list[Finished] = []
    for part in _run_all(request, folder):
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


def _run_all(request: AllRequest, folder: Path) -> Iterator[Finished]:
    """Every part when it has ended; nothing more once the demo bundle could not be built."""
    bundle = request.bundle or folder / _BUNDLE
    if request.demo:
        built = run_command("build", ["build", "--demo", "-o", str(bundle), "--force"])
        yield built
        if not built.ok:
            return
    for part in plan(bundle, request.demo, request.lr, request.hr, request.minutes * 60):
        yield run_part(part, folder, request.output.html)
