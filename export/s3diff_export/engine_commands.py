"""The subcommand `engines`, and the options of engines that `build` shares with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from s3diff_export.engines import AddedEngines, EngineOptions, SizeRange, add_engines
from s3diff_export.engines.options import DEFAULT_TARGETS, HardwareCompatibility, parse_size
from s3diff_export.progress import live_progress
from s3diff_runtime.bundle.engine_records import Flavour
from s3diff_runtime.errors import RequestError

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)
_FLAVOURS = click.Choice(get_args(Flavour))


def engine_options(command: Command) -> Command:
    """The options of `EngineOptions` but the flavour; `chosen_engines` reads them."""
    size = "Low-resolution pixels: 128, or HEIGHTxWIDTH such as 96x128."
    for option in reversed(
        (
            click.option("--min-size", help=f"Smallest image. {size} [default: the bundle's padding]"),
            click.option("--opt-size", help="Size that the engines are tuned for. [default: 128]"),
            click.option("--max-size", help="Largest image or tile. [default: 256]"),
            click.option("--min-batch", type=int, default=1, show_default=True, help="Images in a call."),
            click.option("--opt-batch", type=int, default=1, show_default=True, help="As tuned for."),
            click.option("--max-batch", type=int, default=4, show_default=True, help="At most."),
            click.option("--workspace-mib", type=int, help="Scratch memory on the device. [default: all]"),
            click.option(
                "--optimization-level",
                type=int,
                default=3,
                show_default=True,
                help="0 builds fastest, 5 runs fastest.",
            ),
            click.option("--timing-cache", type=_FILE, help="File that speeds up later builds. tensorrt."),
            click.option(
                "--hardware-compatibility",
                type=click.Choice(get_args(HardwareCompatibility)),
                default="none",
                show_default=True,
                help="Other GPUs that the engines run on too, slower. tensorrt.",
            ),
            click.option(
                "--compute-capability",
                help=f"GPUs to build for. tensorrt-rtx. [default: {','.join(DEFAULT_TARGETS)}]",
            ),
        )
    ):
        command = option(command)
    return command


def chosen_engines(engine: str | None, given: dict[str, Any]) -> EngineOptions | None:
    """The options that `engine_options` added, as given to the command; None without an engine.

    Raises:
        RequestError: naming everything that is wrong; or for options of engines where none was asked for.
    """
    if engine is None:
        source = click.get_current_context().get_parameter_source
        typed = [name for name in given if source(name) is ParameterSource.COMMANDLINE]
        idle = [f"--{name.replace('_', '-')}" for name in typed]
        if idle:
            raise RequestError(f"{', '.join(idle)} without an engine; add --engine tensorrt or tensorrt-rtx")
        return None
    sizes = (given[f"{which}_size"] for which in ("min", "opt", "max"))
    capabilities = given["compute_capability"] or ""
    return EngineOptions(
        flavour=engine,  # type: ignore[arg-type] # click offers no other
        sizes=SizeRange(*(None if size is None else parse_size(size) for size in sizes)),
        batch=(given["min_batch"], given["opt_batch"], given["max_batch"]),
        workspace_mib=given["workspace_mib"],
        optimization_level=given["optimization_level"],
        timing_cache=given["timing_cache"],
        hardware_compatibility=given["hardware_compatibility"],
        compute_capabilities=tuple(part.strip() for part in capabilities.split(",") if part.strip()),
    )


@click.command()
@click.argument("bundle", type=_FILE)
@click.option("--engine", type=_FLAVOURS, required=True, help="tensorrt needs a GPU; tensorrt-rtx does not.")
@engine_options
@click.option("--force", is_flag=True, help="Build engines anew that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def engines(bundle: Path, engine: str, force: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401
    """Build TensorRT engines of BUNDLE and add them to it.

    Run it on the machine that is to upscale: engines of tensorrt run on the GPU that they were built on, and
    both flavours' in the very version that built them. Engines that are there already are kept.

    \b
      s3diff-export engines s3diff.bundle --engine tensorrt
      s3diff-export engines s3diff.bundle --engine tensorrt --max-size 512 --max-batch 8
      s3diff-export engines s3diff.bundle --engine tensorrt-rtx --compute-capability 8.9,12.0
    """
    options = chosen_engines(engine, given)
    if options is None:
        raise RequestError("no engine was chosen; pass --engine")
    with live_progress() as progress:
        added = add_engines(bundle, options, force, progress)
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), **added.to_dict()}, indent=2))
    else:
        click.echo(bundle)
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
