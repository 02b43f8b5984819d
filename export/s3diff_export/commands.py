"""Subcommands of the export room: `build` and `verify`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from s3diff_export.build import BuildRequest, PublishedBundle
from s3diff_export.build import build as build_bundle
from s3diff_export.verification.cases import check_cases, check_pictures
from s3diff_export.verification.layers import LayerReport, compare_layers
from s3diff_export.verification.parity import Gates, ParityReport
from s3diff_export.verification.parity import verify as verify_bundle
from s3diff_export.verification.reference import references
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import total_size
from s3diff_runtime.engines.choice import open_engine
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.flavours import BUILDER_FLAVOURS, Flavour
from s3diff_runtime.errors import BuildError, RequestError
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.progress import show_table, steps
from s3diff_training.weights import ModelSource, differing


def build(request: BuildRequest) -> None:
    """Turn weights of S3Diff or one of its siblings into a bundle that upscales without torch.

    \b
      s3diff-export build --demo -o demo.bundle
      s3diff-export build --base sd-turbo/ --checkpoint s3diff.pkl --estimator de_net.pth -o s3diff.bundle
      s3diff-export build --base sd-2.1-base/ --checkpoint osediff.pkl -o osediff.bundle --prompts runtime
      s3diff-export build --demo -o demo.bundle --engine tensorrt --max-size 512
    """
    with steps() as progress:
        built = build_bundle(request, progress)
    if request.as_json:
        click.echo(json.dumps(_summary(built), indent=2))
        return
    click.echo(built.path)
    if built.pushed:
        click.echo(built.pushed)
    costs = built.manifest.reports.get("bins", [])
    if costs:
        _show_bins(costs)
    if built.parity is not None:
        _show_parity(built.parity)
    if built.engines is not None:
        built.engines.show()


@dataclass(frozen=True)
class VerifyRequest(Options):
    """What `s3diff-export verify` can be asked for."""

    bundle: Path = argument("Folder of the bundle.")
    weights: ModelSource = group(ModelSource)
    images: Path | None = option(None, "Folder of low-resolution photographs to verify on; else drawn ones.")
    gates: Gates = group(Gates)
    layers: bool = option(
        False, "Instead, compare every layer with the same computed in fp32; needs no weights."
    )
    engine: Flavour = option(
        "onnx", "That runs the bundle; with --layers, TensorRT's layers are compared with ONNX Runtime's."
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    cpu: CpuOptions = group(CpuOptions)
    as_json: bool = option(False, "Print the report as JSON.", flags=("--json",))

    def problems(self) -> Iterator[str]:
        """Options that would do nothing beside `layers`, or weights that are missing without it."""
        groups = (self.weights.flags_of(), self.gates.flags_of("epsilon", "psnr"), self.cpu.flags_of())
        idle = [flag for flags in (*groups, self.flags_of("device")) for flag in flags]
        if self.layers and idle:
            yield f"{', '.join(idle)} with --layers: it needs no weights, and no gate but --gate-stage"
        served = (VerifyRequest.engine, *BUILDER_FLAVOURS)
        if self.layers and self.engine not in served:
            yield f"--layers with --engine {self.engine}, which shows none: expected {' or '.join(served)}"


def verify(request: VerifyRequest) -> None:
    """Compare BUNDLE with PyTorch in fp32, stage by stage and end to end.

    Needs the weights that it was built from, and checks that they are the same. Writes the report into the
    bundle. Exits 1 when a gate fails, naming the stage that broke first; --layers finds where in that stage.
    """
    bundle = Bundle.open(request.bundle, check="hashes")
    if request.layers:
        _verify_layers(request, bundle)
    else:
        _verify_stages(request, bundle)


def _verify_stages(request: VerifyRequest, bundle: Bundle) -> None:
    runner, opened = open_engine(bundle, request.engine, request.device, request.cpu)
    manifest, pictures = bundle.manifest, check_pictures(request.images)
    with steps() as progress:
        progress("loading the weights")
        network, sources = request.weights.load_recorded()
        other = differing(sources, manifest)
        if other:
            raise RequestError(
                f"{request.bundle} was built from other weights ({', '.join(other)}); expected "
                + ", ".join(manifest.sources[name].name for name in other)
            )
        cases = check_cases(pictures, manifest.family, manifest.bins, manifest.scales, manifest.is_adjustable)
        guided = manifest.guidance.mode == "on"
        truths = references(network, cases, manifest.color_fixes, guided, progress)
        parity = verify_bundle(opened, truths, request.gates, progress, runner)
    as_in_builds = (request.engine, request.device) == (VerifyRequest.engine, VerifyRequest.device)
    precision = f" in {runner.precision}" if runner.precision else ""
    ran = "" if as_in_builds else f" of {request.engine} on {request.device}{precision}"
    reports = {**manifest.reports, f"parity{ran}": parity.to_dict()}
    manifest.model_copy(update={"reports": reports}).write(request.bundle)
    if request.as_json:
        click.echo(json.dumps(parity.to_dict(), indent=2))
    else:
        _show_parity(parity)
    if not parity:
        raise BuildError(f"{request.bundle} does not compute what PyTorch computes: {parity.broken}")


def _verify_layers(request: VerifyRequest, bundle: Bundle) -> None:
    flavour = next((each for each in BUILDER_FLAVOURS if each == request.engine), None)
    picture = check_pictures(request.images)[0]
    with steps() as progress:
        reports = compare_layers(bundle, picture, request.gates, flavour, progress)
    if request.as_json:
        click.echo(json.dumps([report.to_dict() for report in reports], indent=2))
    else:
        _show_layers(reports)
    for report in reports:
        if report.first is not None:
            raise BuildError(
                f"layer {report.first.name} of {report.stage} leaves its truth: relative error "
                f"{report.first.relative:.2e}, limit {report.limit:.0e}"
            )


def _summary(built: PublishedBundle) -> dict[str, Any]:
    size = total_size(built.manifest.files)
    engines = {} if built.engines is None else {"engines": built.engines.to_dict()}
    pushed = {"pushed": built.pushed} if built.pushed else {}
    return {"bundle": str(built.path), "bytes": size, **built.manifest.reports, **engines, **pushed}


def _show_bins(costs: Sequence[dict[str, Any]]) -> None:
    columns = ("bins", "ε relative, mean", "ε relative, max", "image PSNR, mean", "min")
    rows = []
    for cost in costs:
        errors = (f"{cost[f'epsilon_relative_{kind}']:.2e}" for kind in ("mean", "max"))
        psnrs = (f"{cost[f'image_psnr_{kind}']:.1f} dB" for kind in ("mean", "min"))
        rows.append((f"{cost['bins']} ({cost['count']})", *errors, *psnrs))
    show_table("Nearest bin against exact modulation", columns, rows)


def _show_layers(reports: Sequence[LayerReport]) -> None:
    """What broke first in each stage, and the worst layers."""
    for report in reports:
        title = f"{report.stage}: {report.found} against {report.truth}, {report.count} layers"
        layers = [("worst", layer) for layer in report.worst]
        if report.first is not None:
            layers.insert(0, ("first above the gate", report.first))
        rows = ((role, layer.name, layer.operator, f"{layer.relative:.2e}") for role, layer in layers)
        show_table(title, ("", "layer", "operator", "relative error"), rows)


def _show_parity(parity: ParityReport) -> None:
    title = f"Parity with PyTorch in fp32, worst of {parity.cases} cases"
    rows = []
    for row in parity.quantities:
        errors = (f"{value:.1e}" for value in (row.relative, row.largest, row.mean, row.limit))
        rows.append((row.quantity, *errors, "ok" if row.passed else "FAILED"))
    for fix, psnr in parity.psnr.items():
        shown = "identical" if psnr is None else f"{psnr:.1f} dB"
        rows.append((f"image ({fix})", shown, "", "", f"{parity.gates.psnr:.0f} dB", ""))
    show_table(title, ("quantity", "relative", "largest", "mean", "limit", ""), rows)
