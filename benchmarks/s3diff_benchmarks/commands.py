"""The group `bench` and its commands; what a command measures with is imported only when it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import click

from s3diff_benchmarks.report.findings import report_on
from s3diff_runtime.command_line import takes
from s3diff_runtime.options import Options

T = TypeVar("T", bound=Options)


def _command(options: type[T], work: Callable[[T], None]) -> click.Command:
    return click.command()(takes(options)(work))


def _latency() -> click.Command:
    """Time BUNDLE: seconds for one call, by stage, and what it achieves of this machine.

    Engines, other bundles and, where weights are named, PyTorch (as released, and tuned) run in the same
    rounds, in an order drawn anew each time, so that drift hits all alike. Images are never cut into
    tiles. The paper's Table 3 stands beside; ratios only between what this run measured.

    \b
      s3diff-export bench latency s3diff.bundle --size 128,256 --batch 1,4 -o latency
      s3diff-export bench latency s3diff.bundle --engine onnx,tensorrt --device cuda --demo
    """
    from s3diff_benchmarks.speed.latency_run import LatencyRequest, run_latency

    return _command(
        LatencyRequest, lambda request: report_on("latency", run_latency, request, request.output)
    )


def _throughput() -> click.Command:
    """Images per second of BUNDLE: from a folder, with callers that wait, and with arrivals that do not.

    Callers of the first device each ask for one image after another (closed loop). Then images arrive at
    fixed rates, whether or not the earlier ones are done (open loop): waiting times count from the
    arrival, and the knee is the highest rate that is served in time.

    \b
      s3diff-export bench throughput s3diff.bundle -o throughput
      s3diff-export bench throughput s3diff.bundle --device all --seconds 300 -o throughput --html
    """
    from s3diff_benchmarks.speed.throughput import ThroughputRequest, run_throughput

    return _command(
        ThroughputRequest, lambda request: report_on("throughput", run_throughput, request, request.output)
    )


def _quality() -> click.Command:
    """Score what BUNDLE makes of photographs: PSNR, SSIM, LPIPS, DISTS against truths, and more without.

    Rows of the same run stand beside: bicubic, other bundles, PyTorch where weights are named, and any
    folder of another method's outputs. Of the first four photographs the report shows before and after.

    \b
      s3diff-export bench quality s3diff.bundle --lr RealSR/LR --hr RealSR/HR --dataset RealSR -o quality
    """
    from s3diff_benchmarks.pictures.quality import QualityRequest, run_quality

    return _command(
        QualityRequest, lambda request: report_on("quality", run_quality, request, request.output)
    )


def _fidelity() -> click.Command:
    """Measure how far BUNDLE is from what PyTorch computes in fp32, and what brings it there.

    The error of the nearest bin against the number of bins; of each bundle, with its mode and precision,
    on every engine that runs here; and of tiles against the image in one piece, by their overlap.
    Without weights (--demo, or --base and --checkpoint) only tiles can be compared.

    \b
      s3diff-export bench fidelity dynamic-fp16.bundle --vs merged-fp16.bundle --demo -o fidelity
    """
    from s3diff_benchmarks.pictures.fidelity import FidelityRequest, run_fidelity

    return _command(
        FidelityRequest, lambda request: report_on("fidelity", run_fidelity, request, request.output)
    )


def _control() -> click.Command:
    """Restore IMAGE with every pair of noise and blur scores of a grid, as the paper's Figure 11.

    The report shows the grid as one sheet, and the fine detail left in each cell. Without an IMAGE one is
    drawn. A merged bundle answers every setting with its nearest bin; the table says which.

    \b
      s3diff-export bench control s3diff.bundle photograph.jpg --steps 5 -o control
    """
    from s3diff_benchmarks.pictures.control import ControlRequest, run_control

    return _command(
        ControlRequest, lambda request: report_on("control", run_control, request, request.output)
    )


def _all() -> click.Command:
    """Run every benchmark on BUNDLE: latency, throughput, quality, fidelity and control.

    Each writes its report into a folder of its own below the output; index.md, and with --html
    index.html, show the first table of each and lead to the rest. A benchmark that fails is told, the
    others still run, and the exit code is then 1.

    \b
      s3diff-export bench all --demo -o bench-output --html
      s3diff-export bench all s3diff.bundle --lr RealSR/LR --hr RealSR/HR --minutes 30 -o bench-output
    """
    from s3diff_benchmarks.everything import AllRequest, run_all

    return _command(AllRequest, run_all)


def _compare() -> click.Command:
    """Tell what became worse or better from the report OLD to NEW: report.json files, or their folders.

    A figure with a confidence interval changed only where the two intervals do not overlap.

    \b
      s3diff-export bench compare main/latency/report.json branch/latency/report.json --fail-on 5
    """
    from s3diff_benchmarks.report.changes import CompareRequest, show_changes

    return _command(CompareRequest, show_changes)


_COMMANDS: Mapping[str, tuple[Callable[[], click.Command], str]] = MappingProxyType(
    {
        "all": (_all, "Run everything below on one bundle; one folder of reports with an index."),
        "latency": (_latency, "Seconds for one call, by stage, beside PyTorch and the paper's Table 3."),
        "throughput": (_throughput, "Images per second, and the waiting times of callers under load."),
        "quality": (
            _quality,
            "PSNR, SSIM, LPIPS and more on photographs, beside the paper's Tables 1, 2.",
        ),
        "fidelity": (_fidelity, "How far bins, fp16, engines and tiles take the result from the exact one."),
        "control": (_control, "What the noise and blur scores do to one image, as the paper's Figure 11."),
        "compare": (_compare, "Tell regressions from noise between two reports."),
    }
)
"""What makes each command, whose docstring is its help, and its line in the help of the group."""


class LazyGroup(click.Group):
    """A group whose members are made when they run; its own help shows their summaries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which the table above gives them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the real command behind the name in `args`; raises `click.UsageError` for an unknown one."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and command:
            make, _ = _COMMANDS[name]
            command = make()
            command.name, command.help = name, make.__doc__
        return name, command, rest


bench = LazyGroup(
    name="bench",
    help="""Measure how fast a bundle is and how good its images are.

    Every command shows tables; with -o FOLDER it also writes them as JSON, Markdown and plots, and with
    --html as a page. Figures of other machines are marked as published, and only what one run measured is set
    in ratio.

    \b
      s3diff-export bench all --demo -o bench-output --html
      s3diff-export bench latency s3diff.bundle --size 128,256 --batch 1,4 -o latency
      s3diff-export bench compare old/report.json new/report.json --fail-on 5
    """,
    commands=[click.Command(name, short_help=summary) for name, (_, summary) in _COMMANDS.items()],
)
