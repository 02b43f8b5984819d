"""The subcommand `engines`: builds what a set of engines lacks, and publishes all of it at once."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from s3diff_export.engines.building import BuildCost, EngineBuilder, EngineSource, require_builder
from s3diff_export.engines.options import EngineOptions, exact_shapes, stage_shapes
from s3diff_runtime.bundle.engine_records import EngineIdentity, EngineSet, EngineSidecar, sidecar_path
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import SHARED, Manifest, place_of, recorded
from s3diff_runtime.files import replacing
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.progress import Steps, show_table, steps
from s3diff_runtime.stages import scale_key

_HASH_LENGTH = 8
_FOLDER = "engines"


@dataclass(frozen=True)
class EnginesRequest(Options):
    """What `s3diff-export engines` can be asked for."""

    bundle: Path = argument("The bundle to add them to.")
    engines: EngineOptions = group(EngineOptions)
    force: bool = option(False, "Build engines anew that are there already.")
    as_json: bool = option(False, "Print the result as JSON.", flags=("--json",))


@dataclass(frozen=True)
class EngineReport:
    """One engine of a set."""

    stage: str
    graph: str
    """Name of the bin, or `shared`."""
    path: str
    bytes: int
    seconds: float
    """Of its build, reading the graph included."""
    parse_seconds: float | None
    """The part of them that reading the graph took; None for one that was there already."""
    peak_memory: int | None
    """Bytes of the process while it was built; None for one that was there already."""
    reused: bool


@dataclass(frozen=True)
class AddedEngines:
    """What was done about a set of engines."""

    engine_set: EngineSet
    engines: tuple[EngineReport, ...]
    manifest: Manifest
    """Of the bundle with the engines."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.engine_set.name,
            "identity": self.engine_set.identity.model_dump(mode="json"),
            "engines": [asdict(engine) for engine in self.engines],
        }

    def show(self) -> None:
        """Print what was built on standard error."""
        rows = []
        for engine in self.engines:
            memory = "kept" if engine.peak_memory is None else f"{engine.peak_memory / 2**20:.0f} MiB"
            size = f"{engine.bytes / 2**20:.1f} MiB"
            rows.append((engine.stage, engine.graph, size, f"{engine.seconds:.1f}", memory))
        show_table(
            f"Engines {self.engine_set.name}", ("stage", "graph", "size", "seconds", "host memory"), rows
        )


def engines(request: EnginesRequest) -> None:
    """Build TensorRT engines of BUNDLE and add them to it.

    Run it on the machine that is to upscale: engines of tensorrt run on the GPU that they were built on, and
    in the very version that built them; with --version-compatible, in the lean runtime of that version and of
    later ones. Engines that are there already are kept.

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
        added.show()


def add_engines(
    folder: Path, options: EngineOptions, force: bool = False, progress: Steps = lambda _: None
) -> AddedEngines:
    """Build an engine of every graph of a bundle, for every bin, and add them to it as one set.

    Engines of the same identity that were built from the same graphs are kept as they are. A set of another
    identity stays beside the new one. The engines are written into a hidden folder of the bundle, which gets
    its name when all are there, before the manifest that names it takes the place of the old one: whatever
    fails, or ends the process, leaves the bundle as it was. With `force`, engines that are there already are
    built anew.

    Raises:
        BundleError: for a folder that is not a whole bundle.
        RequestError: for sizes that do not fit the bundle, or a machine that cannot build.
        BuildError: when TensorRT refuses; names the stage.
        JobError: when the disk refuses.
    """
    builder = require_builder(options)
    progress("checking the bundle")
    manifest = Manifest.read(folder, check="hashes")
    identity = _identity(builder, manifest)
    current = next((each for each in manifest.engines if each.identity == identity), None)
    jobs = list(_jobs(folder, manifest, None if force else current))
    if current is not None and all(job.there_already for job in jobs):
        kept = tuple(_report(current.name, job, job.there_already) for job in jobs if job.there_already)
        return AddedEngines(current, kept, manifest)
    sets, name, reports = folder / _FOLDER, _free_name(folder, identity), list[EngineReport]()
    try:
        with replacing(sets / name) as scratch:
            for job in jobs:
                (scratch / job.file).parent.mkdir(parents=True, exist_ok=True)
                cost, sidecar = None, job.there_already
                if current is not None and sidecar is not None:
                    for file in (job.file, sidecar_path(job.file)):
                        shutil.copyfile(sets / current.name / file, scratch / file)
                else:
                    source = _source(job, folder, manifest, identity)
                    cost = builder.build(source, scratch / job.file, progress)
                    sidecar = _write_sidecar(job, source, cost, identity, scratch / job.file)
                reports.append(_report(name, job, sidecar, cost))
            progress("hashing")
            graphs = {
                stage: {each.graph: each.path for each in reports if each.stage == stage}
                for stage in manifest.stages
            }
            added = EngineSet(name=name, identity=identity, graphs=graphs)
            manifest = _with_set(Manifest.read(folder), added, current, scratch)
        # The folder has its name now; until the manifest names it, the bundle is what it was.
        manifest.write(folder)
    except BaseException:
        shutil.rmtree(sets / name, ignore_errors=True)
        with suppress(OSError):  # it holds other sets
            sets.rmdir()
        raise
    if current is not None:
        shutil.rmtree(sets / current.name, ignore_errors=True)
    return AddedEngines(added, tuple(reports), manifest)


@dataclass(frozen=True)
class _GraphJob:
    """One graph of the bundle, which needs an engine."""

    stage: str
    graph: str
    file: str
    """Path of the engine below its set."""
    onnx: dict[str, str]
    """The files of the graph with their hashes."""
    there_already: EngineSidecar | None
    """What stands beside the engine that there is of it."""


def _jobs(folder: Path, manifest: Manifest, current: EngineSet | None) -> Iterator[_GraphJob]:
    for name, stage in manifest.stages.items():
        for graph, path in stage.graphs.items():
            file = f"{place_of(name, graph)}.engine"
            onnx = {each: record.sha256 for each, record in manifest.graph_files(path).items()}
            sidecar = None
            if current is not None:
                with suppress(OSError, ValidationError):  # one that cannot be read is built anew
                    text = (folder / _FOLDER / current.name / sidecar_path(file)).read_bytes()
                    sidecar = EngineSidecar.model_validate_json(text)
            yield _GraphJob(name, graph, file, onnx, sidecar if sidecar and sidecar.onnx == onnx else None)


def _source(job: _GraphJob, bundle: Path, manifest: Manifest, identity: EngineIdentity) -> EngineSource:
    stage = manifest.stages[job.stage]
    scale = next((scale for scale in manifest.scales if scale_key(scale) == job.graph), manifest.scale)
    label = job.stage if job.graph == SHARED else f"{job.stage} of {job.graph}"
    return EngineSource(
        bundle / stage.graphs[job.graph],
        stage,
        stage_shapes(manifest, stage, identity.profile, scale),
        label,
        manifest.precision,
        exact_shapes(manifest, stage, identity.profile, identity.exact_batches, scale),
    )


def _write_sidecar(
    job: _GraphJob, source: EngineSource, cost: BuildCost, identity: EngineIdentity, path: Path
) -> EngineSidecar:
    """Describe the engine at `path` in a file beside it."""
    sidecar = EngineSidecar(
        identity=identity,
        stage=job.stage,
        graph=job.graph,
        onnx=job.onnx,
        inputs=source.stage.inputs,
        outputs=source.stage.outputs,
        shapes=dict(source.shapes),
        exact=tuple(map(dict, source.exact)),
        sha256=sha256(path),
        size=path.stat().st_size,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(cost.seconds, 3),
    )
    path.with_suffix(".json").write_text(sidecar.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return sidecar


def _report(
    set_name: str, job: _GraphJob, sidecar: EngineSidecar, cost: BuildCost | None = None
) -> EngineReport:
    """What is to be said of an engine; without a cost, it was there already."""
    return EngineReport(
        stage=job.stage,
        graph=job.graph,
        path=f"{_FOLDER}/{set_name}/{job.file}",
        bytes=sidecar.size,
        seconds=sidecar.seconds,
        parse_seconds=None if cost is None else round(cost.parse_seconds, 3),
        peak_memory=None if cost is None else cost.peak_memory,
        reused=cost is None,
    )


def _identity(builder: EngineBuilder, manifest: Manifest) -> EngineIdentity:
    """What an engine that is built here may be used for."""
    gpu, options = builder.gpu, builder.options
    return EngineIdentity(
        flavour=(options.version_compatible and options.traits.version_compatible) or builder.tensorrt.name,
        version=builder.tensorrt.version,
        targets=options.targets if gpu is None else (gpu.compute_capability,),
        hardware_compatibility=options.hardware_compatibility,
        gpu=None if gpu is None else gpu.name,
        driver=None if gpu is None else gpu.driver,
        precision=manifest.precision,
        profile=options.profile(manifest.multiple),
        exact_batches=options.exact_batches,
        options={name: getattr(options, name) for name in ("optimization_level", "workspace_mib")},
    )


def _free_name(folder: Path, identity: EngineIdentity) -> str:
    """`<flavour>-<version>-<gpu or targets>-<hash of the identity>`, numbered where a folder has that name.

    A number is needed while an older set of the same identity is still in use.
    """
    digest = hashlib.sha256(identity.model_dump_json().encode()).hexdigest()[:_HASH_LENGTH]
    where = identity.gpu or "sm" + "-".join(target.replace(".", "") for target in identity.targets)
    words = f"{identity.flavour}-{identity.version}-{where}-{digest}".lower()
    name = re.sub(r"[^a-z0-9._+-]+", "-", words)
    taken = {path.name for path in (folder / _FOLDER).glob("*")}
    numbered = (f"{name}.{number}" for number in range(2, len(taken) + 3))
    return next(each for each in (name, *numbered) if each not in taken)


def _with_set(manifest: Manifest, added: EngineSet, outdated: EngineSet | None, scratch: Path) -> Manifest:
    """The manifest with a set whose files lie in `scratch`, and without the one that it replaces."""
    kept = tuple(each for each in manifest.engines if outdated is None or each.name != outdated.name)
    files = {
        name: record
        for name, record in manifest.files.items()
        if outdated is None or not name.startswith(f"{_FOLDER}/{outdated.name}/")
    }
    files |= {f"{_FOLDER}/{added.name}/{name}": record for name, record in recorded(scratch).items()}
    changed = manifest.model_copy(update={"engines": (*kept, added), "files": files})
    return Manifest.model_validate(changed.model_dump())
