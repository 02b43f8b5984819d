"""What a benchmark is asked and what it finds, and the report on it: on which machine, of which bundles."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Self, TypeVar

from PIL import Image

from s3diff_benchmarks.machine import describe_machine
from s3diff_benchmarks.report.model import BundleFacts, Picture, Plot, Report, Table
from s3diff_benchmarks.report.output import Output, show_report, write_report
from s3diff_runtime.command_line import typed_command
from s3diff_runtime.options import Options, argument, group, infos_of, option
from s3diff_training.weights import ModelSource


@dataclass(frozen=True)
class Findings:
    """The parts of a report that a benchmark finds out, and the files that go with them."""

    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    images: Mapping[str, Image.Image] = field(default_factory=dict)
    """By the names that the pictures use."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts of more files, by name."""

    def noting(self, *notes: str) -> Self:
        """The same findings with notes in front."""
        return replace(self, notes=(*notes, *self.notes))


@dataclass(frozen=True)
class BenchmarkRequest(Options):
    """What a benchmark is asked."""

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All that are measured, the first of them in the foreground."""
        return ()

    @property
    def subject(self) -> str:
        """What a report without bundles is of."""
        return "weights in PyTorch"


@dataclass(frozen=True)
class BundleRequest(BenchmarkRequest):
    """What those are asked that need a bundle."""

    bundle: Path = argument("Bundle to measure.")
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    output: Output = group(Output)

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All that are measured, the first of them in the foreground."""
        return (self.bundle,)


@dataclass(frozen=True)
class BundlesRequest(BundleRequest):
    """What those are asked that set bundles beside each other, and beside PyTorch."""

    vs: tuple[Path, ...] = option((), "Another bundle, measured beside; repeatable.", repeated=True)
    weights: ModelSource = group(ModelSource)

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All that are measured, the first of them in the foreground."""
        return (self.bundle, *self.vs)


R = TypeVar("R", bound=BenchmarkRequest)


def report_on(kind: str, measure: Callable[[R], Findings], request: R, output: Output) -> None:
    """Measure, and write and show the report.

    Args:
        kind: of the report.
        measure: finds out what the request asks.
        request: its own options, but not those of groups, are the report's.
        output: where the report goes.

    Raises:
        RequestError: before any work, when the folder is in the way, or one is no bundle.
    """
    output.check_folder()
    start, machine = perf_counter(), describe_machine()
    bundles = tuple(map(BundleFacts.read, request.bundles))
    options = {name: getattr(request, name) for name in infos_of(type(request))}
    findings = measure(request)
    report = Report(
        kind=kind,
        title=f"{kind.capitalize()} of {bundles[0].name if bundles else request.subject}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=typed_command(),
        options=json.loads(json.dumps(options, default=str)),
        bundles=bundles,
        machine=machine,
        seconds=perf_counter() - start,
        tables=findings.tables,
        plots=findings.plots,
        pictures=findings.pictures,
        notes=findings.notes,
    )
    write_report(report, output, findings.images, findings.files)
    show_report(report, output)
