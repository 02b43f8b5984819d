"""Bundles of the tiny network that the tests of engines build from, and a builder that takes no time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.export.models import Files

from s3diff_export.bins import grid
from s3diff_export.build import BuildRequest, build
from s3diff_export.engines.building import BuildCost, EngineSource
from s3diff_export.graphs.options import GraphOptions
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.records import FileRecord

OPTIONS: dict[str, dict[str, Any]] = {
    "dynamic": {"graphs": GraphOptions("dynamic", "fp16", prompts="runtime")},
    "fused": {"graphs": GraphOptions("fused", "fp16"), "color_fixes": ("wavelet",)},
    "merged": {"graphs": GraphOptions("merged", "fp16"), "bins": grid(1, 1), "color_fixes": ("wavelet",)},
}
"""All stages that there are: the finishes and the text encoder are the same in every mode."""


def make_bundle(files: Files, mode: str, folder: Path) -> Path:
    """Export the tiny network, unverified."""
    path = folder / f"{mode}.bundle"
    build(BuildRequest(path, files.source(), verify=False, scales=(4,), **OPTIONS[mode]))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace_file(bundle: Path, name: str, content: bytes) -> None:
    """Put another file into a bundle, and say so in its manifest."""
    manifest = Manifest.read(bundle)
    (bundle / name).write_bytes(content)
    record = FileRecord(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    manifest.model_copy(update={"files": {**manifest.files, name: record}}).write(bundle)


@dataclass
class QuickBuilder:
    """Takes the place of `EngineBuilder.build`: writes a plan at once, and remembers what was asked for."""

    built: list[str] = field(default_factory=list)
    before: Callable[[str], None] = lambda _: None
    """Called with the stage's name before each."""

    def __call__(self, source: EngineSource, path: Path, progress: Callable[[str], None]) -> BuildCost:
        self.before(source.name)
        self.built.append(source.name)
        path.write_bytes(hashlib.sha256(source.graph.read_bytes()).digest() * 40 + bytes([len(self.built)]))
        progress(f"building {source.name}: 50%")
        return BuildCost(seconds=0.25, parse_seconds=0.05, peak_memory=2**20)
