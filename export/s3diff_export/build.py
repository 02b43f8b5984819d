"""From weights to a published bundle."""

import gc
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from s3diff_export.bins import grid, parse_bins
from s3diff_export.engines.adding import AddedEngines, add_engines
from s3diff_export.engines.building import require_builder
from s3diff_export.engines.options import EngineOptions
from s3diff_export.graphs.cuda_form import write_cuda_form
from s3diff_export.graphs.onnx_export import export_onnx
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.stages import is_guided, stage_graphs
from s3diff_export.verification.bin_costs import bin_costs
from s3diff_export.verification.cases import check_cases, check_pictures
from s3diff_export.verification.chain import run_chains
from s3diff_export.verification.parity import Gates, ParityReport, verify
from s3diff_export.verification.reference import references
from s3diff_runtime.bundle.hub import Publishing, push, writable_repository
from s3diff_runtime.bundle.manifest import (
    SHARED,
    Bin,
    Guidance,
    Manifest,
    Prompts,
    Source,
    Stage,
    place_of,
    recorded,
)
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import MANIFEST_NAME
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.errors import BuildError, RequestError, refuse
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.files import replacing, require_replaceable
from s3diff_runtime.lora_modes import LORA_MODES
from s3diff_runtime.memory import process_memory
from s3diff_runtime.options import Options, group, option
from s3diff_runtime.progress import Steps
from s3diff_runtime.vocabulary import COLOR_FIXES, SCALE, SCALES, Axis, ColorFix
from s3diff_training.data import from_uint8
from s3diff_training.network.model import S3Diff
from s3diff_training.network.one_step_network import OneStepNetwork
from s3diff_training.weights import ModelSource

_COST_SIDE = 32  # pixels: bins are compared on one small picture, so that full-size models take minutes
_BYTES = {"fp32": 4, "fp16": 2}
_SPARE = 1.1  # of the estimated size, for graphs and folded constants


@dataclass(frozen=True)
class BuildRequest(Options):
    """What `s3diff-export build` can be asked for."""

    output: Path = option(help="The bundle: a folder to make.", flags=("-o", "--output"))
    weights: ModelSource = group(ModelSource)
    graphs: GraphOptions = group(GraphOptions)
    bins: tuple[Bin, ...] = option(
        grid(3, 3),
        "For merged: a grid, noise by blur, or a CSV file of centres.",
        parse=parse_bins,
        shown="3x3",
    )
    color_fixes: tuple[ColorFix, ...] = option(
        COLOR_FIXES,
        "Colour corrections to include; repeat for several.",
        flags=("--color-fix",),
        repeated=True,
    )
    scales: tuple[int, ...] = option(
        SCALES,
        "By what results can be larger than inputs; 4 among them.",
        least=min(SCALES),
        most=max(SCALES),
    )
    images: Path | None = option(None, "Folder of low-resolution photographs to verify on; else drawn ones.")
    gates: Gates = group(Gates)
    verify: bool = option(True, "Publish without comparing with PyTorch.")
    engines: EngineOptions = group(EngineOptions)
    force: bool = option(False, "Replace an existing bundle, once the new one is whole.")
    push_to: str | None = option(None, "Then publish it as OWNER/NAME on the Hub.")
    publishing: Publishing = group(Publishing)
    as_json: bool = option(False, "Print the result as JSON.", flags=("--json",))

    def problems(self) -> Iterator[str]:
        """What is missing, and options that would do nothing."""
        if not self.bins:
            yield "no bins, expected one or more"
        if SCALE not in self.scales or len(set(self.scales)) != len(self.scales):
            yield f"scales {', '.join(map(str, self.scales))}, expected {SCALE} among them, each once"
        if not self.color_fixes:
            yield "no colour correction, expected one or more"
        if "bins" in self.given and not LORA_MODES[self.graphs.lora_mode].has_bins:
            modes = " or ".join(mode for mode, traits in LORA_MODES.items() if traits.has_bins)
            yield f"--bins does nothing with --lora-mode {self.graphs.lora_mode}; expected {modes}"
        if self.publishing.given and not self.push_to:
            yield f"{', '.join(self.publishing.flags_of())} without --push-to; nothing is published"
        if not self.verify and self.gates.given:
            yield f"{', '.join(self.gates.flags_of())} without a comparison; leave out --no-verify"


@dataclass(frozen=True)
class PublishedBundle:
    """What a build made; no parity without verification, no engines and no push where none were asked for."""

    path: Path
    manifest: Manifest
    parity: ParityReport | None
    engines: AddedEngines | None
    pushed: str | None
    """URL of the commit on the Hub."""


class StepClock:
    """Tells the progress what begins and keeps how long each step took."""

    def __init__(self, progress: Steps) -> None:
        self._progress, self._name, self._began = progress, "", time.monotonic()
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str) -> None:
        """Begin a step; the empty one only ends the last."""
        now = time.monotonic()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._began
        self._name, self._began = step, now
        if step:
            self._progress(step)


def build(request: BuildRequest, progress: Steps = lambda _: None) -> PublishedBundle:
    """Load, measure, export, verify, build engines, publish; `progress` is told of each step as it begins.

    The bundle at the output is whole or, after a failure, as before.

    Raises:
        RequestError: for an output in the way, weights or options that do not fit, too little disk space, or
            a repository that cannot be pushed to.
        BuildError: when a graph cannot be exported, or fails its check or its gate.
    """
    output = request.output
    require_replaceable(output, request.force, MANIFEST_NAME, "bundle")
    wants_engines = request.engines.flavour is not None
    if wants_engines:
        require_builder(request.engines)
    repository = writable_repository(request.push_to, request.publishing) if request.push_to else None
    clock = StepClock(progress)
    pictures = check_pictures(request.images)
    clock("loading the weights")
    network, sources = request.weights.load_recorded()
    if wants_engines:
        request.engines.profile(network.multiple)  # refuses sizes that do not fit, before hours of work
    request = _fitted(request, network)
    family, mode = FAMILIES[network.family], request.graphs.lora_mode
    bins = request.bins if family.has_bins(mode) else ()
    _require_space(network, request, len(bins))
    cases = check_cases(pictures, network.family, bins, request.scales, family.is_adjustable(mode))
    reports: dict[str, Any] = {}
    if bins:
        clock("comparing bins with exact modulation")
        small = from_uint8(pictures[0][:_COST_SIDE, :_COST_SIDE])[None]
        reports["bins"] = [asdict(cost) for cost in bin_costs(cast(S3Diff, network), small, bins)]
    asked = cases if request.verify else ()
    truths = references(network, asked, request.color_fixes, is_guided(network, request.graphs), clock)
    with replacing(request.output) as folder:
        folder.mkdir()
        manifest = _export(folder, network, sources, request, bins, clock)
        del network
        gc.collect()
        bundle, parity, engines = Bundle(folder, manifest), None, None
        if truths:
            parity = verify(bundle, truths, request.gates, clock)
            _require_parity(parity)
            reports["parity"] = parity.to_dict()
        else:
            run_chains(bundle, cases, OnnxEngine(), lambda stage: clock(f"checking {stage}"))
        if wants_engines:
            clock("building engines")
            engines = add_engines(folder, request.engines, progress=progress)
            manifest = engines.manifest
        clock("")
        reports["build"] = {"seconds": clock.seconds, "peak_memory": process_memory("VmHWM")}
        manifest = manifest.model_copy(update={"reports": reports})
        manifest.write(folder)
    pushed = None
    if repository is not None:
        progress(f"pushing to {repository}")
        pushed = push(request.output, repository, request.publishing)
    return PublishedBundle(request.output, manifest, parity, engines, pushed)


def _fitted(request: BuildRequest, network: OneStepNetwork) -> BuildRequest:
    """The request with what the family leaves no choice of; raises `RequestError` for what it cannot do."""
    family, graphs = FAMILIES[network.family], request.graphs
    problems = []
    if graphs.lora_mode not in family.lora_modes and "lora_mode" in graphs.given:
        problems.append(f"--lora-mode {graphs.lora_mode}, expected {' or '.join(family.lora_modes)}")
    if "bins" in request.given and not family.estimates:
        problems.append("--bins, where no degradation turns the LoRA")
    if not family.guides and "guidance" in graphs.given and graphs.guidance == "on":
        problems.append("--guidance on, where there is no negative prompt")
    refuse(problems, f"{family.title} cannot be built so")
    if graphs.lora_mode not in family.lora_modes:
        graphs = graphs.but(lora_mode=family.lora_modes[0])
    return request.but(graphs=graphs)


def _require_space(network: OneStepNetwork, request: BuildRequest, bins: int) -> None:
    weights = sum(tensor.numel() for part in (network.unet, network.vae) for tensor in part.parameters())
    needed = int(_SPARE * _BYTES[request.graphs.precision] * weights * max(bins, 1)) + 2**24
    parent = next(folder for folder in request.output.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise RequestError(
            f"{parent} has {free / 2**20:,.0f} MiB free and the bundle needs about {needed / 2**20:,.0f}; "
            "free some, choose fewer bins, or another --output"
        )


def _export(
    folder: Path,
    network: OneStepNetwork,
    sources: Mapping[str, Source],
    request: BuildRequest,
    bins: Sequence[Bin],
    clock: StepClock,
) -> Manifest:
    """Export every graph, and write a manifest that names them all."""
    stages: dict[str, Stage] = {}
    prompts = _prompts(folder, network, request.graphs.prompts == "runtime")
    guided = is_guided(network, request.graphs)
    for graph in stage_graphs(network, request.graphs, bins, request.color_fixes, request.scales):
        clock(f"exporting {graph.stage}" + (f" of {graph.key}" if graph.key != SHARED else ""))
        path = f"onnx/{place_of(graph.stage, graph.key)}.onnx"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        export_onnx(graph, folder / path)
        write_cuda_form(folder / path)
        others = stages[graph.stage].graphs if graph.stage in stages else {}
        graphs = {**others, graph.key: path}
        stages[graph.stage] = Stage(inputs=graph.inputs, outputs=graph.outputs, graphs=graphs)
    clock("hashing")
    manifest = Manifest(
        producer=f"s3diff-export {version('s3diff-export')}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        family=network.family,
        sources=dict(sources),
        lora_mode=request.graphs.lora_mode,
        precision=request.graphs.precision,
        multiple=network.multiple,
        vae_factor=network.vae_factor,
        latent_channels=network.vae.config.latent_channels,
        degradation_axes=cast(tuple[Axis, ...], network.degradation_axes),
        bins=tuple(bins),
        prompts=prompts,
        guidance=Guidance(mode="on" if guided else "off", default=network.guidance),
        color_fixes=request.color_fixes,
        stages=stages,
        files=recorded(folder),
    )
    manifest.write(folder)
    return manifest


def _prompts(folder: Path, network: OneStepNetwork, at_runtime: bool) -> Prompts:
    """The checkpoint's, and for those that come at run time a tokenizer in the bundle."""
    positive, negative = (*network.prompts, "")[:2]
    if not at_runtime:
        return Prompts(mode="folded", positive=positive, negative=negative)
    source = network.tokenizer
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    length, name = source.model_max_length, "tokenizer.json"
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=source.pad_token_id, pad_token=source.pad_token)
    tokenizer.save(str(folder / name))
    return Prompts(mode="runtime", positive=positive, negative=negative, max_length=length, tokenizer=name)


def _require_parity(parity: ParityReport) -> None:
    """A bundle that fails is never published."""
    if not parity:
        raise BuildError(
            f"the bundle does not compute what PyTorch computes: {parity.broken}; nothing was published; "
            "try --precision fp32, or set the gate with --gate-epsilon and --gate-psnr"
        )
