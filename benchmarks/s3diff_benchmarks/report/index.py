"""The index of several reports: index.json, index.md and index.html in the folder above them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from s3diff_benchmarks.report.output import FORMAT, INDEX_NAME, JSON_NAME
from s3diff_benchmarks.report.reading import read_report
from s3diff_benchmarks.report.rendering import render
from s3diff_benchmarks.steps import Outcome
from s3diff_runtime.files import write_text


def write_index(folder: Path, command: str, steps: Sequence[Outcome], html: bool) -> None:
    """Write the index of `folder`, each file atomically.

    Args:
        folder: holds a folder with a report for every step that made one, by its name.
        command: as it was typed.
        steps: in the order in which they are shown.
        html: also write index.html, which leads to the pages of the reports.

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
