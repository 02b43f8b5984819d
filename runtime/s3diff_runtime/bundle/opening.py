"""An opened bundle: its checked manifest, where its graphs are, and which bin serves a degradation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from s3diff_runtime.bundle.engine_records import EngineSet
from s3diff_runtime.bundle.integrity import checked_content
from s3diff_runtime.bundle.manifest import SHARED, Bin, Manifest


@dataclass(frozen=True)
class Bundle:
    """A folder with a manifest that was checked against it."""

    folder: Path
    manifest: Manifest
    engines: EngineSet | None = None
    """The engines that take the place of the ONNX graphs; None runs the graphs."""

    @classmethod
    def open(cls, folder: Path, check: Literal["sizes", "hashes"] = "sizes") -> Self:
        """Check the bundle in `folder`, see `Manifest.read`. Raises `BundleError`, naming all problems."""
        return cls(folder, Manifest.read(folder, check))

    def key(self, stage: str, bin: Bin | None) -> str:
        """Under which name `stage` keeps the graph that serves `bin`."""
        return SHARED if bin is None or SHARED in self.manifest.stages[stage].graphs else bin.name

    def graph(self, stage: str, key: str) -> str:
        """Name of the file that runs: an ONNX graph or an engine."""
        graphs = self.engines.graphs[stage] if self.engines else self.manifest.stages[stage].graphs
        return graphs[key]

    def size(self, stage: str, key: str) -> int:
        """Bytes of what runs, with its weights."""
        graph, files = self.graph(stage, key), self.manifest.files
        return sum(files[name].size for name in (graph, f"{graph}.data") if name in files)

    def read(self, name: str) -> bytes:
        """The content of a file, after its size and hash were checked. Raises `BundleError`."""
        return checked_content(self.folder, name, self.manifest.files.get(name))
