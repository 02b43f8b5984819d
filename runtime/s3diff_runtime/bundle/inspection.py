"""The manifest of a bundle for people, see `s3diff-export inspect`."""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click
from rich.console import Console

from s3diff_runtime.bundle.engine_records import EngineSet
from s3diff_runtime.bundle.fetching import local_bundle
from s3diff_runtime.bundle.manifest import SHARED, Manifest
from s3diff_runtime.bundle.records import TensorSpec, total_size
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.options import Options, argument, option
from s3diff_runtime.progress import show_table
from s3diff_runtime.stages import STAGES

_LONGEST_LIST = 6


@dataclass(frozen=True)
class InspectRequest(Options):
    """What `s3diff-export inspect` can be asked for."""

    bundle: str = argument("Folder of the bundle, OWNER/NAME[@REVISION] on the Hub, or a URL.")
    as_json: bool = option(False, "Print the manifest as JSON.", flags=("--json",))
    check: bool = option(False, "Compare the hash of every file, large ones too.")


def run_inspect(request: InspectRequest) -> None:
    """Show what BUNDLE was built from, what it can do, and how well it was verified.

    Raises:
        BundleError: for a damaged bundle.
    """
    manifest = Manifest.read(local_bundle(request.bundle), check="hashes" if request.check else "sizes")
    if request.as_json:
        click.echo(manifest.model_dump_json(indent=2))
    else:
        for title, columns, rows in _tables(manifest, request):
            show_table(title, columns, rows, Console(soft_wrap=True))


def _tables(
    manifest: Manifest, request: InspectRequest
) -> Iterator[tuple[str, Sequence[str], Iterator[tuple[str, ...]]]]:
    """Titles, columns and rows: the bundle, its stages, bins and engines, and the reports of its build."""
    how = "every hash compared" if request.check else "all sizes and the hashes of small files compared"
    *known, (name, files) = facts(manifest)
    yield f"Bundle {request.bundle}", ("", ""), iter([*known, (name, f"{files}; {how}")])
    yield "Stages", ("stage", "inputs", "outputs", "graphs", "size"), _stages(manifest)
    if manifest.bins:
        bins = ((bin.name, f"{bin.noise:g}", f"{bin.blur:g}") for bin in manifest.bins)
        yield "Bins", ("name", "noise", "blur"), bins
    for engines in manifest.engines:
        yield f"Engines {engines.name}", ("", ""), _engines(engines, manifest)
    for name, report in manifest.reports.items():
        yield f"Report: {name}", ("", ""), _flat(report)


def facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What a bundle was built from and can do, in words."""
    prompts, guidance = manifest.prompts, manifest.guidance
    yield "format", f"{manifest.format}, revision {manifest.revision}"
    yield "built", f"{manifest.created} by {manifest.producer}"
    for role, source in manifest.sources.items():
        yield role, f"{source.name} (sha256 {source.sha256[:12]}…)"
    yield "family", FAMILIES[manifest.family].title
    yield "LoRA mode", manifest.lora_mode
    yield "precision", manifest.precision
    yield "scales", ", ".join(f"×{scale}" for scale in manifest.scales)
    yield "padding", f"to a multiple of {manifest.multiple} pixels of the result, inside"
    yield "latent", f"{manifest.latent_channels} channels at 1/{manifest.vae_factor} of the size"
    axes = ", ".join(manifest.degradation_axes)
    yield "degradation", f"{axes} (the estimator's order)" if axes else "none is read or taken"
    yield "guidance", guidance.mode if guidance.mode == "off" else f"on, {guidance.default:g} by default"
    yield "prompts", "folded into the graphs" if prompts.mode == "folded" else "any text"
    yield "positive prompt", prompts.positive
    if guidance.mode == "on":
        yield "negative prompt", prompts.negative
    yield "colour corrections", ", ".join(manifest.color_fixes)
    yield "files", f"{len(manifest.files)} with {as_bytes(total_size(manifest.files))}"


def _stages(manifest: Manifest) -> Iterator[tuple[str, ...]]:
    for name, stage in manifest.stages.items():
        size = total_size(ChainMap(*(manifest.graph_files(graph) for graph in stage.graphs.values())))
        per = "scale" if STAGES[name].by_scale else "bin"
        graphs = "1, shared" if SHARED in stage.graphs else f"{len(stage.graphs)}, one per {per}"
        yield name, _tensors(stage.inputs), _tensors(stage.outputs), graphs, as_bytes(size)


def _engines(engines: EngineSet, manifest: Manifest) -> Iterator[tuple[str, str]]:
    identity, paths = engines.identity, list(engines.paths())
    yield "TensorRT", f"{identity.flavour} {identity.version}"
    runs_on = f"compute capability {', '.join(identity.targets)}"
    if identity.gpu is not None:
        runs_on = f"{identity.gpu}, {runs_on}, a driver for CUDA {identity.driver} or later"
    if identity.hardware_compatibility != "none":
        runs_on += f"; {identity.hardware_compatibility.replace('_', ' ')}"
    yield "runs on", runs_on
    for name, sizes in identity.profile:
        yield name, f"{sizes.min} to {sizes.max}, tuned for {sizes.opt}"
    for name, value in identity.options.items():
        if value is not None:
            yield name.replace("_", " "), str(value)
    yield "engines", f"{len(paths)} with {as_bytes(sum(manifest.files[path].size for path in paths))}"


def _tensors(specs: Sequence[TensorSpec]) -> str:
    return "\n".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)


def _flat(value: object, name: str = "") -> Iterator[tuple[str, str]]:
    """A report's numbers and words, each under the path that leads to it; long lists as their length."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and len(value) > _LONGEST_LIST:
        yield name, f"{len(value)} entries, see --json"
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    else:
        yield name, str(value)


def as_bytes(size: int) -> str:
    """A size in the unit that suits it."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.4g} GiB"
