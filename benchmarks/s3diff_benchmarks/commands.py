"""The group `bench`: names its subcommands and imports one only when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

import click

_COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "all": (
            "s3diff_benchmarks.everything:all_benchmarks",
            "Run everything below on one bundle; one folder of reports with an index.",
        ),
        "latency": (
            "s3diff_benchmarks.speed_commands:latency",
            "Seconds for one call, by stage, beside PyTorch and the paper's Table 3.",
        ),
        "throughput": (
            "s3diff_benchmarks.speed_commands:throughput",
            "Images per second, and the waiting times of callers under load.",
        ),
        "quality": (
            "s3diff_benchmarks.quality_commands:quality",
            "PSNR, SSIM, LPIPS and more on photographs, beside the paper's Tables 1 and 2.",
        ),
        "fidelity": (
            "s3diff_benchmarks.quality_commands:fidelity",
            "How far bins, fp16, engines and tiles take the result from the exact one.",
        ),
        "control": (
            "s3diff_benchmarks.quality_commands:control",
            "What the noise and blur scores do to one image, as the paper's Figure 11.",
        ),
        "compare": (
            "s3diff_benchmarks.compare_command:compare",
            "Tell regressions from noise between two reports.",
        ),
    }
)
"""Where each command lives and its line in the help, in the order of the help."""


class LazyGroup(click.Group):
    """A group whose members are imported when they run; its own help shows their summaries."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which the table above gives them."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the real command behind the name in `args`; raises `click.UsageError` for an unknown one."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        module, _, attribute = _COMMANDS[name][0].partition(":")
        return name, getattr(importlib.import_module(module), attribute), rest


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
