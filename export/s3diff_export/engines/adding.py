"""Adds a set of engines to a bundle: builds what is missing, and publishes all of it at once."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from s3diff_export.engines.api import TensorRt
from s3diff_export.engines.building import EngineBuilder
from s3diff_export.engines.options import EngineOptions
from s3diff_export.engines.shapes import stage_shapes
from s3diff_runtime.bundle.engine_records import EngineIdentity, EngineSet, EngineSidecar, Profile
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


def require_builder(options: EngineOptions) -> None:
    """Check that this machine can build what the options ask for, see `TensorRt.find`."""
    TensorRt.find(options)


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
    progress("checking the bundle")
    manifest = Manifest.read(folder, check="hashes")
    profile = options.profile(manifest.multiple)
    tensorrt = TensorRt.find(options)
    identity = _identity(tensorrt, options, manifest, profile)
    current = next((each for each in manifest.engines if each.identity == identity), None)
    jobs = list(_jobs(folder, manifest, current if not force else None))
    if current is not None and all(job.sidecar for job in jobs):
        return AddedEngines(current, tuple(job.reused() for job in jobs), manifest)
    builder = EngineBuilder(tensorrt, options)
    name = _free_name(folder, identity)
    with _publishing(folder, name) as scratch:
        reports = tuple(
            job.keep(scratch, name)
            if job.sidecar
            else _build(job, builder, identity, scratch, name, progress)
            for job in jobs
        )
        progress("hashing")
        added = _engine_set(name, identity, reports)
        manifest = _with_set(Manifest.read(folder), added, current, scratch)
    # The folder has its name now; until the manifest names it, the bundle is what it was.
    try:
        manifest.write(folder)
    except BaseException:
        shutil.rmtree(folder / _FOLDER / name, ignore_errors=True)
        _remove_if_empty(folder / _FOLDER)
        raise
    if current is not None:
        shutil.rmtree(folder / _FOLDER / current.name, ignore_errors=True)
    return AddedEngines(added, reports, manifest)


@dataclass(frozen=True)
class _Job:
    """One graph, and the engine that there is of it, if any."""

    folder: Path
    manifest: Manifest
    stage: str
    graph: str
    existing: str | None
    sidecar: EngineSidecar | None

    @property
    def file(self) -> str:
        """Path of the engine below its set."""
        return f"{self.stage}.engine" if self.graph == SHARED else f"bins/{self.graph}/{self.stage}.engine"

    @property
    def label(self) -> str:
        """For people."""
        return self.stage if self.graph == SHARED else f"{self.stage} of bin {self.graph}"

    @property
    def onnx(self) -> dict[str, str]:
        """The files of the graph with their hashes."""
        return _onnx(self.manifest, self.stage, self.graph)

    def reused(self, path: str | None = None) -> EngineReport:
        """The report of an engine that is kept, at `path` or where it is."""
        if self.sidecar is None or self.existing is None:
            raise ValueError(f"{self.label} has no engine to keep")
        size, seconds = self.sidecar.size, self.sidecar.seconds
        where = path or self.existing
        return EngineReport(self.stage, self.graph, where, size, seconds, None, None, reused=True)

    def keep(self, scratch: Path, name: str) -> EngineReport:
        """Copy the engine and its sidecar into a new set."""
        report = self.reused(f"{_FOLDER}/{name}/{self.file}")
        source, target = self.folder / str(self.existing), scratch / self.file
        target.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".engine", ".json"):
            shutil.copyfile(source.with_suffix(suffix), target.with_suffix(suffix))
        return report


def _jobs(folder: Path, manifest: Manifest, current: EngineSet | None) -> Iterator[_Job]:
    for stage_name, stage in manifest.stages.items():
        for graph in stage.graphs:
            path = current.graphs.get(stage_name, {}).get(graph) if current is not None else None
            sidecar = _sidecar(folder / path) if path is not None else None
            if sidecar is not None and sidecar.onnx != _onnx(manifest, stage_name, graph):
                sidecar = None
            yield _Job(folder, manifest, stage_name, graph, path, sidecar)


def _onnx(manifest: Manifest, stage: str, graph: str) -> dict[str, str]:
    path = manifest.stages[stage].graphs[graph]
    return {name: manifest.files[name].sha256 for name in (path, f"{path}.data") if name in manifest.files}


def _sidecar(engine: Path) -> EngineSidecar | None:
    """What stands beside an engine; None where it cannot be read, and the engine is built anew."""
    try:
        return EngineSidecar.model_validate_json(engine.with_suffix(".json").read_bytes())
    except (OSError, ValidationError):
        return None


def _build(
    job: _Job, builder: EngineBuilder, identity: EngineIdentity, scratch: Path, name: str, progress: Progress
) -> EngineReport:
    stage, path = job.manifest.stages[job.stage], scratch / job.file
    path.parent.mkdir(parents=True, exist_ok=True)
    shapes = stage_shapes(job.manifest, stage, identity.profile)
    built = builder.build(job.folder / stage.graphs[job.graph], stage, shapes, path, job.label, progress)
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
        seconds=round(built.seconds, 3),
    )
    path.with_suffix(".json").write_text(sidecar.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return EngineReport(
        stage=job.stage,
        graph=job.graph,
        path=f"{_FOLDER}/{name}/{job.file}",
        bytes=sidecar.size,
        seconds=sidecar.seconds,
        parse_seconds=round(built.parse_seconds, 3),
        peak_memory=built.peak_memory,
        reused=False,
    )


def _identity(
    tensorrt: TensorRt, options: EngineOptions, manifest: Manifest, profile: Profile
) -> EngineIdentity:
    """What an engine that these options build here may be used for."""
    gpu = tensorrt.gpu
    return EngineIdentity(
        flavour=options.flavour,
        version=tensorrt.version,
        targets=options.targets if gpu is None else (gpu.compute_capability,),
        hardware_compatibility=options.hardware_compatibility,
        gpu=None if gpu is None else gpu.name,
        driver=None if gpu is None else gpu.driver,
        precision=manifest.precision,
        profile=profile,
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


@contextmanager
def _publishing(folder: Path, name: str) -> Iterator[Path]:
    """A hidden folder for a set, which gets its name when the block ends well and is removed otherwise."""
    try:
        with replacing(folder / _FOLDER / name) as scratch:
            scratch.mkdir()
            yield scratch
    except BaseException:
        _remove_if_empty(folder / _FOLDER)
        raise


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds other sets
        folder.rmdir()


def _engine_set(name: str, identity: EngineIdentity, reports: tuple[EngineReport, ...]) -> EngineSet:
    graphs: dict[str, dict[str, str]] = {}
    for report in reports:
        graphs.setdefault(report.stage, {})[report.graph] = report.path
    return EngineSet(name=name, identity=identity, graphs=graphs)


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
