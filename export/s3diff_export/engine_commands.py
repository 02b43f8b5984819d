"""The subcommand `engines`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from s3diff_export.engines import AddedEngines, EngineOptions, add_engines
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.progress import steps


@dataclass(frozen=True)
class EnginesRequest(Options):
    """What `s3diff-export engines` can be asked for."""

    bundle: Path = argument("The bundle to add them to.")
    engines: EngineOptions = group(EngineOptions)
    force: bool = option(False, "Build engines anew that are there already.")
    as_json: bool = option(False, "Print the result as JSON.", flags=("--json",))


def engines(request: EnginesRequest) -> None:
    """Build TensorRT engines of BUNDLE and add them to it.

    Run it on the machine that is to upscale: engines of tensorrt run on the GPU that they were built on, and
    both flavours' in the very version that built them. Engines that are there already are kept.

    \b
      s3diff-export engines s3diff.bundle --engine tensorrt
      s3diff-export engines s3diff.bundle --engine tensorrt --max-size 512 --max-batch 8
      s3diff-export engines s3diff.bundle --engine tensorrt-rtx --compute-capability 8.9,12.0
    """
    with steps() as progress:
        added = add_engines(request.bundle, request.engines, request.force, progress)
    if request.as_json:
        click.echo(json.dumps({"bundle": str(request.bundle), **added.to_dict()}, indent=2))
    else:
        click.echo(request.bundle)
        show_engines(added)


def show_engines(added: AddedEngines) -> None:
    """Print what was built on standard error."""
    table = Table(title=f"Engines {added.engine_set.name}")
    for column in ("stage", "graph", "size", "seconds", "host memory"):
        table.add_column(column)
    for engine in added.engines:
        memory = "kept" if engine.peak_memory is None else f"{engine.peak_memory / 2**20:.0f} MiB"
        size = f"{engine.bytes / 2**20:.1f} MiB"
        table.add_row(engine.stage, engine.graph, size, f"{engine.seconds:.1f}", memory)
    Console(stderr=True).print(table)
