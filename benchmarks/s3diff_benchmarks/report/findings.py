"""Puts a report together: what was asked, of which bundles, on which machine, and what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from s3diff_benchmarks.machine import Machine, describe_machine
from s3diff_benchmarks.report.model import BundleFacts, Picture, Plot, Report, Table
from s3diff_benchmarks.report.output import Output
from s3diff_benchmarks.report.writing import publish
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import MANIFEST_NAME, Manifest
from s3diff_runtime.command_line import typed_command


@dataclass(frozen=True)
class Findings:
    """The parts of a report that a benchmark finds out, and the files that go with them."""

    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    images: Mapping[str, Image.Image] | None = None
    """By the names that the pictures use."""
    files: Mapping[str, str] | None = None
    """Texts of more files, by name."""

    def noting(self, *notes: str) -> Findings:
        """The same findings with notes in front."""
        return replace(self, notes=(*notes, *self.notes))


class Assembly:
    """A report in the making; describes the machine, and starts the clock, when it is made."""

    def __init__(self, kind: str, title: str, options: Mapping[str, Any], bundles: Sequence[Path]) -> None:
        """Check the bundles.

        Args:
            kind: of the report.
            title: of the report.
            options: as given; paths become text.
            bundles: that are measured.

        Raises:
            BundleError: for a folder that is no bundle.
        """
        self._start = perf_counter()
        self._kind, self._title = kind, title
        self._options = {name: _as_json(value) for name, value in options.items()}
        self._machine = describe_machine()
        self._bundles = tuple(
            BundleFacts.of(path.resolve().name, Manifest.read(path), sha256(path / MANIFEST_NAME))
            for path in bundles
        )

    @property
    def machine(self) -> Machine:
        """What measures."""
        return self._machine

    def publish(self, findings: Findings, output: Output) -> None:
        """Write and show the report. Raises as `writing.write_report`."""
        report = Report(
            kind=self._kind,
            title=self._title,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=typed_command(),
            options=self._options,
            bundles=self._bundles,
            machine=self._machine,
            seconds=perf_counter() - self._start,
            tables=findings.tables,
            plots=findings.plots,
            pictures=findings.pictures,
            notes=findings.notes,
        )
        publish(report, output, findings.images or {}, findings.files or {})


def _as_json(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_as_json(item) for item in value]
    return value
