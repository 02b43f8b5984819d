"""Adds a set of engines to a bundle: builds what is missing, and publishes all of it at once."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from s3diff_export.engines.building import BuildCost, EngineBuilder, EngineSource, require_builder
from s3diff_export.engines.options import EngineOptions
from s3diff_export.engines.shapes import stage_shapes
from s3diff_runtime.bundle.engine_records import (
    EngineIdentity,
    EngineSet,
    EngineSidecar,
    sidecar_path,
)
from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import SHARED, Manifest
from s3diff_runtime.bundle.records import FileRecord
from s3diff_runtime.files import replacing

Progress = Callable[[str], None]
_HASH_LENGTH = 8
_FOLDER = "engines"


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


def add_engines(
    folder: Path, options: EngineOptions, force: bool = False, progress: Progress = lambda _: None
) -> AddedEngines:
    """Build an engine of every graph of a bundle, for every bin, and add them to it as one set.

    Engines of the same identity that were built from the same graphs are kept as they are. A set of another
    identity stays beside the new one. The engines are written into a hidden folder of the bundle, which gets
    its name when all are there, before the manifest that names it takes the place of the old one: whatever
    fails, or ends the process, leaves the bundle as it was.

    Args:
        folder: of the bundle.
        options: what to build.
        force: build engines that are there already anew.
        progress: told what is being done.

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
    if current is not None and all(job.sidecar for job in jobs):
        kept = tuple(job.report(current.name, job.sidecar) for job in jobs if job.sidecar)
        return AddedEngines(current, kept, manifest)
    sets, name, reports = folder / _FOLDER, _free_name(folder, identity), list[EngineReport]()
    try:
        with replacing(sets / name) as scratch:
            for job in jobs:
                (scratch / job.file).parent.mkdir(parents=True, exist_ok=True)
                if current is not None and job.sidecar is not None:
                    for file in (job.file, sidecar_path(job.file)):
                        shutil.copyfile(sets / current.name / file, scratch / file)
                    reports.append(job.report(name, job.sidecar))
                else:
                    built = _build(job, builder, folder, manifest, scratch / job.file, progress)
                    reports.append(job.report(name, *built))
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
    onnx: dict[str, str]
    """The files of the graph with their hashes."""
    sidecar: EngineSidecar | None
    """Of the engine that there is of it already."""

    @property
    def file(self) -> str:
        """Path of the engine below its set."""
        return _file(self.stage, self.graph)

    def report(self, set_name: str, sidecar: EngineSidecar, cost: BuildCost | None = None) -> EngineReport:
        """What is to be said of the engine; without a cost, it was there already."""
        return EngineReport(
            stage=self.stage,
            graph=self.graph,
            path=f"{_FOLDER}/{set_name}/{self.file}",
            bytes=sidecar.size,
            seconds=sidecar.seconds,
            parse_seconds=None if cost is None else round(cost.parse_seconds, 3),
            peak_memory=None if cost is None else cost.peak_memory,
            reused=cost is None,
        )


def _file(stage: str, graph: str) -> str:
    return f"{stage}.engine" if graph == SHARED else f"bins/{graph}/{stage}.engine"


def _jobs(folder: Path, manifest: Manifest, current: EngineSet | None) -> Iterator[_GraphJob]:
    for name, stage in manifest.stages.items():
        for graph, path in stage.graphs.items():
            files = (each for each in (path, f"{path}.data") if each in manifest.files)
            onnx = {file: manifest.files[file].sha256 for file in files}
            sidecar = None
            if current is not None:
                sidecar = _sidecar(folder / _FOLDER / current.name / sidecar_path(_file(name, graph)))
            yield _GraphJob(name, graph, onnx, sidecar if sidecar and sidecar.onnx == onnx else None)


def _build(
    job: _GraphJob, builder: EngineBuilder, bundle: Path, manifest: Manifest, path: Path, progress: Progress
) -> tuple[EngineSidecar, BuildCost]:
    """Build an engine at `path`, and write its sidecar."""
    stage, identity = manifest.stages[job.stage], _identity(builder, manifest)
    shapes = stage_shapes(manifest, stage, identity.profile)
    label = job.stage if job.graph == SHARED else f"{job.stage} of bin {job.graph}"
    source = EngineSource(bundle / stage.graphs[job.graph], stage, shapes, label)
    cost = builder.build(source, path, progress)
    sidecar = EngineSidecar(
        identity=identity,
        stage=job.stage,
        graph=job.graph,
        onnx=job.onnx,
        inputs=stage.inputs,
        outputs=stage.outputs,
        shapes={tensor: (each.min, each.opt, each.max) for tensor, each in shapes.items()},
        sha256=sha256(path),
        size=path.stat().st_size,
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(cost.seconds, 3),
    )
    path.with_suffix(".json").write_text(sidecar.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return sidecar, cost


def _sidecar(path: Path) -> EngineSidecar | None:
    """What stands beside an engine; None where it cannot be read, and the engine is built anew."""
    try:
        return EngineSidecar.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _identity(builder: EngineBuilder, manifest: Manifest) -> EngineIdentity:
    """What an engine that is built here may be used for."""
    gpu, options = builder.gpu, builder.options
    return EngineIdentity(
        flavour=builder.tensorrt.name,
        version=builder.tensorrt.version,
        targets=options.targets if gpu is None else (gpu.compute_capability,),
        hardware_compatibility=options.hardware_compatibility,
        gpu=None if gpu is None else gpu.name,
        driver=None if gpu is None else gpu.driver,
        precision=manifest.precision,
        profile=options.profile(manifest.multiple),
        options={
            "optimization_level": options.optimization_level,
            "workspace_mib": options.workspace_mib,
        },
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
    for path in sorted(scratch.rglob("*")):
        if path.is_file():
            where = f"{_FOLDER}/{added.name}/{path.relative_to(scratch).as_posix()}"
            files[where] = FileRecord(sha256=sha256(path), size=path.stat().st_size)
    changed = manifest.model_copy(update={"engines": (*kept, added), "files": files})
    return Manifest.model_validate(changed.model_dump())
