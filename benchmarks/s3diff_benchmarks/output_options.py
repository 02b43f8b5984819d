"""The options of every benchmark command that say where its report goes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from s3diff_benchmarks.writing import Output


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add -o/--output, --force, --html and --json; the command takes them as `output`, an `Output`."""

    @wraps(command)
    def wrapped(folder: Path | None, force: bool, html: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401
        command(output=Output(folder, force, html, as_json), **given)

    for option in reversed(
        (
            click.option(
                "-o",
                "--output",
                "folder",
                type=click.Path(path_type=Path),
                help="Folder to make, for the report as JSON, Markdown and plots; else only the terminal.",
            ),
            click.option("--force", is_flag=True, help="Replace the report in that folder."),
            click.option(
                "--html", is_flag=True, help="Also write report.html, one page that opens from disk."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print the report as JSON."),
        )
    ):
        wrapped = option(wrapped)
    return wrapped


def typed_command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(["s3diff-export", *sys.argv[1:]])
