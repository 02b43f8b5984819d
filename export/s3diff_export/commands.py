"""Subcommands of the export room: `build` and `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from s3diff_export.bins import parse_bins
from s3diff_export.build import Built, load_network
from s3diff_export.build import build as build_bundle
from s3diff_export.check_images import check_images
from s3diff_export.engine_commands import show_engines
from s3diff_export.engines import EngineOptions
from s3diff_export.engines.layers import LayerReport, compare_layers
from s3diff_export.graphs import GraphOptions
from s3diff_export.options import BuildOptions, ModelSource
from s3diff_export.progress import live_progress
from s3diff_export.reference import Reference, check_cases, references
from s3diff_export.verify import Gates, ParityReport
from s3diff_export.verify import verify as verify_bundle
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.command_line import takes
from s3diff_runtime.engines.choice import ENGINES, open_engine
from s3diff_runtime.engines.flavours import COMPILED_FLAVOURS
from s3diff_runtime.errors import BuildError, RequestError
from s3diff_runtime.options import read
from s3diff_runtime.vocabulary import ColorFix
from s3diff_training.demo import demo_model

Command = TypeVar("Command", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path)


def _weights(command: Command) -> Command:
    """The options that name the weights."""
    for option in reversed(
        (
            click.option("--demo", is_flag=True, help="Use the small model that ships with s3diff-export."),
            click.option("--base", help="SD-Turbo: a diffusers folder or a hub id (stabilityai/sd-turbo)."),
            click.option(
                "--checkpoint", type=_FILE, help="A .safetensors checkpoint, or the released s3diff.pkl."
            ),
            click.option(
                "--estimator", type=_FILE, help="The released de_net.pth, for a checkpoint without one."
            ),
        )
    ):
        command = option(command)
    return command


def _gates(command: Command) -> Command:
    """The options of verification."""
    for option in reversed(
        (
            click.option(
                "--images",
                type=_FILE,
                help="Folder of low-resolution photographs to verify on; else drawn ones.",
            ),
            click.option(
                "--gate-epsilon", type=float, help="Largest relative error of ε. [fp32: 1e-4, fp16: 5e-3]"
            ),
            click.option(
                "--gate-psnr", type=float, help="Lowest PSNR of the final image, dB. [fp32: 60, fp16: 40]"
            ),
            click.option(
                "--gate-stage",
                type=float,
                help="Largest relative error of other stages. [fp32: 1e-3, fp16: 3e-2]",
            ),
        )
    ):
        command = option(command)
    return command


def _engine_options(command: Command) -> Command:
    """The options of `EngineOptions`, until `build` takes a request that has them as a group."""

    @takes(EngineOptions)
    def every(_: EngineOptions) -> None: ...

    known = getattr(command, "__click_params__", [])
    command.__click_params__ = [*known, *every.__click_params__]  # type: ignore[attr-defined]
    return command


def _chosen_engines(typed: dict[str, Any]) -> EngineOptions | None:
    source = click.get_current_context().get_parameter_source
    given = {
        name.replace("__", "."): value
        for name, value in typed.items()
        if source(name) is ParameterSource.COMMANDLINE
    }
    chosen = read(EngineOptions, given)
    return None if chosen.flavour is None else chosen


@click.command()
@_weights
@click.option("-o", "--output", type=_FILE, required=True, help="The bundle: a folder to make.")
@click.option(
    "--lora-mode",
    type=click.Choice(["dynamic", "merged", "fused"]),
    default="dynamic",
    show_default=True,
    help="dynamic: exact, in any batch; fused: exact, one degradation a call; merged: plain graphs, by bin.",
)
@click.option(
    "--bins",
    default="3x3",
    show_default=True,
    help="For merged: a grid, noise by blur, or a CSV file of centres.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Of the graphs.",
)
@click.option(
    "--prompts",
    type=click.Choice(["folded", "runtime"]),
    default="folded",
    show_default=True,
    help="folded: the checkpoint's, as constants; runtime: any text, with the text encoder in the bundle.",
)
@click.option(
    "--guidance",
    type=click.Choice(["on", "off"]),
    default="on",
    show_default=True,
    help="off: the positive prompt alone, about half of the UNet's work.",
)
@click.option(
    "--color-fix",
    "color_fixes",
    type=click.Choice(get_args(ColorFix)),
    multiple=True,
    default=get_args(ColorFix),
    show_default=True,
    help="Colour corrections to include; repeat for several.",
)
@_gates
@click.option("--no-verify", is_flag=True, help="Publish without comparing with PyTorch.")
@_engine_options
@click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is whole.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def build(
    demo: bool,
    base: str | None,
    checkpoint: Path | None,
    estimator: Path | None,
    output: Path,
    lora_mode: str,
    bins: str,
    precision: str,
    prompts: str,
    guidance: str,
    color_fixes: tuple[ColorFix, ...],
    images: Path | None,
    gate_epsilon: float | None,
    gate_psnr: float | None,
    gate_stage: float | None,
    no_verify: bool,
    force: bool,
    as_json: bool,
    **engines: Any,  # noqa: ANN401
) -> None:
    """Turn S3Diff weights into a bundle that upscales without torch.

    \b
      s3diff-export build --demo -o demo.bundle
      s3diff-export build --base sd-turbo/ --checkpoint s3diff.pkl --estimator de_net.pth -o s3diff.bundle
      s3diff-export build --demo -o demo.bundle --engine tensorrt --max-size 512
    """
    options = BuildOptions(
        graphs=GraphOptions(lora_mode=lora_mode, precision=precision, prompts=prompts, guidance=guidance),  # type: ignore[arg-type]
        bins=parse_bins(bins),
        color_fixes=color_fixes,
        gates=Gates(gate_epsilon, gate_psnr, gate_stage),
        verify=not no_verify,
        check_folder=images,
        engines=_chosen_engines(engines),
    )
    source = _source(demo, base, checkpoint, estimator)
    with live_progress() as progress:
        built = build_bundle(source, output, options, force, progress)
    click.echo(json.dumps(_summary(built), indent=2) if as_json else output)
    if not as_json:
        _show_bins(built.manifest.reports.get("bins", []))
        _show_parity(built.parity)
        if built.engines is not None:
            show_engines(built.engines)


@click.command()
@click.argument("bundle", type=_FILE)
@_weights
@_gates
@click.option(
    "--layers",
    is_flag=True,
    help="Instead, compare every layer with the same computed in fp32; needs no weights.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="onnx",
    show_default=True,
    help="That runs the bundle; with --layers, TensorRT's layers are compared with ONNX Runtime's.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(
    bundle: Path,
    demo: bool,
    base: str | None,
    checkpoint: Path | None,
    estimator: Path | None,
    images: Path | None,
    gate_epsilon: float | None,
    gate_psnr: float | None,
    gate_stage: float | None,
    layers: bool,
    engine: str,
    device: str,
    as_json: bool,
) -> None:
    """Compare BUNDLE with PyTorch in fp32, stage by stage and end to end.

    Needs the weights that it was built from, and checks that they are the same. Writes the report into the
    bundle. Exits 1 when a gate fails, naming the stage that broke first; --layers finds where in that stage.
    """
    manifest = Manifest.read(bundle, check="hashes")
    gates = Gates(gate_epsilon, gate_psnr, gate_stage)
    if layers:
        flavour = next((each for each in COMPILED_FLAVOURS if each == engine), None)
        with live_progress() as progress:
            found = compare_layers(bundle, manifest, check_images(images)[0], gates, flavour, progress)
        if as_json:
            click.echo(json.dumps([report.to_dict() for report in found], indent=2))
        else:
            _show_layers(found)
        return
    runner, opened = open_engine(Bundle(bundle, manifest), engine, device)
    source = _source(demo, base, checkpoint, estimator)
    with live_progress() as progress:
        progress("loading the weights")
        network, records = load_network(source)
        other = [
            name
            for name, record in records.items()
            if manifest.sources.get(name, record).sha256 != record.sha256
        ]
        if other:
            raise RequestError(
                f"{bundle} was built from other weights ({', '.join(other)}); expected "
                + ", ".join(manifest.sources[name].name for name in other)
            )
        truths: list[Reference] = []
        for case in check_cases(check_images(images), manifest.bins):
            progress("PyTorch in fp32")
            truths += references(network, [case], manifest.color_fixes, manifest.guidance.mode == "on")
        parity = verify_bundle(opened, truths, gates, progress, runner)
    ran = "" if (engine, device) == ("onnx", "cpu") else f" of {engine} on {device}"
    reports = {**manifest.reports, f"parity{ran}": parity.to_dict()}
    manifest.model_copy(update={"reports": reports}).write(bundle)
    if as_json:
        click.echo(json.dumps(parity.to_dict(), indent=2))
    else:
        _show_parity(parity)
    if not parity:
        raise BuildError(f"{bundle} does not compute what PyTorch computes: {parity.broken}")


def _source(demo: bool, base: str | None, checkpoint: Path | None, estimator: Path | None) -> ModelSource:
    if demo:
        if base or checkpoint or estimator:
            raise RequestError("--demo brings its own weights; drop --base, --checkpoint and --estimator")
        model = demo_model()
        return ModelSource(str(model.base), model.checkpoint)
    if not base or not checkpoint:
        raise RequestError(
            "no weights: pass --base and --checkpoint, or --demo for the small model that ships"
        )
    return ModelSource(base, checkpoint, estimator)


def _summary(built: Built) -> dict[str, Any]:
    size = sum(record.size for record in built.manifest.files.values())
    engines = {} if built.engines is None else {"engines": built.engines.to_dict()}
    return {"bundle": str(built.path), "bytes": size, **built.manifest.reports, **engines}


def _show_bins(costs: list[dict[str, Any]]) -> None:
    if not costs:
        return
    table = Table(title="Nearest bin against exact modulation")
    for column in ("bins", "ε relative, mean", "ε relative, max", "image PSNR, mean", "min"):
        table.add_column(column)
    for cost in costs:
        table.add_row(
            f"{cost['bins']} ({cost['count']})",
            *(f"{cost[f'epsilon_relative_{kind}']:.2e}" for kind in ("mean", "max")),
            *(f"{cost[f'image_psnr_{kind}']:.1f} dB" for kind in ("mean", "min")),
        )
    Console(stderr=True).print(table)


def _show_layers(reports: list[LayerReport]) -> None:
    """What broke first in each stage, and the worst layers."""
    for report in reports:
        table = Table(title=f"{report.stage}: {report.found} against {report.truth}, {report.count} layers")
        for column in ("", "layer", "operator", "relative error"):
            table.add_column(column, overflow="fold")
        first = [] if report.first is None else [("first above the gate", report.first)]
        for role, layer in (*first, *(("worst", layer) for layer in report.worst)):
            table.add_row(role, layer.name, layer.operator, f"{layer.relative:.2e}")
        Console(stderr=True).print(table)


def _show_parity(parity: ParityReport | None) -> None:
    if parity is None:
        return
    table = Table(title=f"Parity with PyTorch in fp32, worst of {parity.cases} cases")
    for column in ("quantity", "relative", "largest", "mean", "limit", ""):
        table.add_column(column)
    for row in parity.quantities:
        errors = (f"{value:.1e}" for value in (row.relative, row.largest, row.mean, row.limit))
        table.add_row(row.quantity, *errors, "ok" if row.passed else "FAILED")
    for fix, psnr in parity.psnr.items():
        shown = "identical" if psnr is None else f"{psnr:.1f} dB"
        table.add_row(f"image ({fix})", shown, "", "", f"{parity.gates.psnr:.0f} dB", "")
    Console(stderr=True).print(table)
