"""From weights to a published bundle."""

from __future__ import annotations

import gc
import hashlib
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from s3diff_export.bins import bin_costs
from s3diff_export.check_images import check_images
from s3diff_export.engines import AddedEngines, add_engines, require_builder
from s3diff_export.graphs import StageGraph, export_onnx, stage_graphs
from s3diff_export.options import BuildOptions, ModelSource
from s3diff_export.reference import CheckCase, Reference, check_cases, references
from s3diff_export.verify import ParityReport, check_sane, verify
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import SHARED, Bin, Guidance, Manifest, Prompts, Source, Stage
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import FileRecord
from s3diff_runtime.errors import BuildError, RequestError
from s3diff_runtime.files import replacing
from s3diff_training.checkpoints import build_network, read_checkpoint
from s3diff_training.data import from_uint8
from s3diff_training.network import S3Diff, load_base

Progress = Callable[[str], None]
_COST_SIDE = 32  # pixels: bins are compared on one small picture, so that full-size models take minutes
_COST_IMAGES = 1
_SPARE = 1.1  # of the estimated size, for graphs and folded constants


@dataclass(frozen=True)
class Built:
    """A published bundle."""

    path: Path
    manifest: Manifest
    parity: ParityReport | None
    """None when verification was skipped."""
    seconds: dict[str, float]
    """By step of the build."""
    peak_memory: int
    """Bytes, of the whole process."""
    engines: AddedEngines | None = None
    """None when none were asked for."""


class _Clock:
    """Tells the progress what begins and keeps how long each step took."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._name, self._began = progress, "", time.monotonic()
        self.seconds: dict[str, float] = {}

    def __call__(self, step: str) -> None:
        now = time.monotonic()
        if self._name:
            self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._began
        self._name, self._began = step, now
        if step:
            self._progress(step)


def build(
    source: ModelSource,
    output: Path,
    options: BuildOptions,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Built:
    """Load, measure, export, verify, build engines, publish.

    The bundle at `output` is whole or, after a failure, as before.

    Args:
        source: the weights.
        output: the bundle's folder.
        options: how to build.
        force: replace what is at `output`.
        progress: told of each step as it begins.

    Raises:
        RequestError: for an output in the way, weights or options that do not fit, or too little disk space.
        BuildError: when a graph cannot be exported, or fails its check or its gate.
    """
    if output.exists() and not force:
        raise RequestError(f"{output} exists; pass --force to replace it")
    if options.engines is not None:
        require_builder(options.engines)
    clock = _Clock(progress)
    images = check_images(options.check_folder)
    clock("loading the weights")
    network, sources = load_network(source)
    if options.engines is not None:
        options.engines.profile(network.multiple)  # refuses sizes that do not fit, before hours of work
    bins = options.bins if options.graphs.lora_mode == "merged" else ()
    _require_space(output, network, options, len(bins))
    cases = check_cases(images, bins)
    reports: dict[str, Any] = {}
    if bins:
        clock("comparing bins with exact modulation")
        reports["bins"] = _bin_report(network, images, bins)
    truths: list[Reference] = []
    if options.verify:
        for number, case in enumerate(cases, start=1):
            clock(f"PyTorch in fp32, case {number} of {len(cases)}")
            truths += references(network, [case], options.color_fixes, options.graphs.guidance == "on")
    with replacing(output) as folder:
        folder.mkdir()
        manifest = _write(folder, network, sources, options, bins, clock)
        del network
        gc.collect()
        parity = _check(folder, manifest, cases, truths, options, clock)
        if parity is not None:
            reports["parity"] = parity.to_dict()
        engines = None
        if options.engines is not None:
            clock("building engines")
            engines = add_engines(folder, options.engines, progress=progress)
            manifest = engines.manifest
        clock("")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        reports["build"] = {"seconds": clock.seconds, "peak_memory": peak}
        manifest = manifest.model_copy(update={"reports": reports})
        manifest.write(folder)
    return Built(output, manifest, parity, clock.seconds, peak, engines)


def load_network(source: ModelSource) -> tuple[S3Diff, dict[str, Source]]:
    """The PyTorch network of the weights, in evaluation mode, fp32 on the CPU, and what tells them apart.

    The record of the base is a hash of its tensors: a hub id has no folder, and the same weights may come in
    other files.

    Raises:
        CheckpointError: when base and checkpoint are unreadable or do not fit each other.
    """
    checkpoint = read_checkpoint(source.checkpoint, source.estimator)
    base = load_base(source.base)
    parts = nn.ModuleList([base.unet, base.vae, base.text_encoder])
    records = {
        "base": Source(name=Path(source.base).name, sha256=_tensor_hash(parts)),
        "checkpoint": Source(name=source.checkpoint.name, sha256=sha256(source.checkpoint)),
    }
    if source.estimator is not None:
        records["estimator"] = Source(name=source.estimator.name, sha256=sha256(source.estimator))
    return build_network(base, checkpoint), records


def _tensor_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _require_space(output: Path, network: S3Diff, options: BuildOptions, bins: int) -> None:
    width = 2 if options.graphs.precision == "fp16" else 4
    count = {name: sum(p.numel() for p in getattr(network, name).parameters()) for name in ("unet", "vae")}
    needed = int(_SPARE * width * sum(count.values()) * max(bins, 1)) + 2**24
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise RequestError(
            f"{parent} has {free / 2**30:.1f} GiB free and the bundle needs about {needed / 2**30:.1f}; "
            "free some, choose fewer bins, or another --output"
        )


def _bin_report(network: S3Diff, images: Sequence[NDArray[np.uint8]], bins: Sequence[Bin]) -> list[Any]:
    small = [from_uint8(image[:_COST_SIDE, :_COST_SIDE])[None] for image in images[:_COST_IMAGES]]
    return [cost.to_dict() for cost in bin_costs(network, small, bins)]


def _write(
    folder: Path,
    network: S3Diff,
    sources: dict[str, Source],
    options: BuildOptions,
    bins: Sequence[Bin],
    clock: _Clock,
) -> Manifest:
    """Export every graph, and a manifest that names them all."""
    config = network.config
    facts = {
        "multiple": network.multiple,
        "vae_factor": network.vae_factor,
        "latent_channels": network.vae.config.latent_channels,
        "degradation_axes": config.degradation_axes,
        "guidance": Guidance(mode=options.graphs.guidance, default=config.guidance),
        "prompts": _prompts(folder, network, options),
    }
    stages: dict[str, Stage] = {}
    points = [(bin.name, bin.noise, bin.blur) for bin in bins]
    for graph in stage_graphs(network, options.graphs, points):
        if (
            graph.stage.startswith("finish_")
            and graph.stage.removeprefix("finish_") not in options.color_fixes
        ):
            continue
        clock(f"exporting {graph.stage}" + (f" of bin {graph.bin}" if graph.bin else ""))
        path = f"onnx/bins/{graph.bin}/{graph.stage}.onnx" if graph.bin else f"onnx/{graph.stage}.onnx"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        export_onnx(graph, folder / path)
        stages[graph.stage] = _with_graph(stages.get(graph.stage), graph, path)
    clock("hashing")
    files = {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256(path), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        producer=f"s3diff-export {version('s3diff-export')}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sources=sources,
        lora_mode=options.graphs.lora_mode,
        precision=options.graphs.precision,
        bins=tuple(bins),
        color_fixes=options.color_fixes,
        stages=stages,
        files=files,
        **facts,
    )
    manifest.write(folder)
    return manifest


def _with_graph(stage: Stage | None, graph: StageGraph, path: str) -> Stage:
    graphs = {**(stage.graphs if stage else {}), graph.bin or SHARED: path}
    return Stage(inputs=graph.inputs, outputs=graph.outputs, graphs=graphs)


def _prompts(folder: Path, network: S3Diff, options: BuildOptions) -> Prompts:
    positive, negative = network.config.positive_prompt, network.config.negative_prompt
    if options.graphs.prompts == "folded":
        return Prompts(mode="folded", positive=positive, negative=negative)
    source = network.tokenizer
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    length = source.model_max_length
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=source.pad_token_id, pad_token=source.pad_token)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Prompts(
        mode="runtime",
        positive=positive,
        negative=negative,
        max_length=length,
        tokenizer="tokenizer.json",
    )


def _check(
    folder: Path,
    manifest: Manifest,
    cases: Sequence[CheckCase],
    truths: Sequence[Reference],
    options: BuildOptions,
    clock: _Clock,
) -> ParityReport | None:
    """Verify, or at least run the bundle; a bundle that fails is never published."""
    if not truths:
        check_sane(Bundle(folder, manifest), cases, clock)
        return None
    parity = verify(Bundle(folder, manifest), truths, options.gates, clock)
    if not parity:
        raise BuildError(
            f"the bundle does not compute what PyTorch computes: {parity.broken}; nothing was published; "
            "try --precision fp32, or set the gate with --gate-epsilon and --gate-psnr"
        )
    return parity
