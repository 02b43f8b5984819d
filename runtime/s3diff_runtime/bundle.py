"""An opened bundle: its checked manifest, where its graphs are, and which bin serves a degradation."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal, Self

from s3diff_runtime.engine_records import EngineSet
from s3diff_runtime.errors import OutOfMemory
from s3diff_runtime.integrity import checked_content
from s3diff_runtime.manifest import SHARED, Bin, Manifest
from s3diff_runtime.session import Engine, Session


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

    def nearest_bin(self, noise: float, blur: float) -> Bin | None:
        """The bin closest to the degradation, the first of equally close ones; None unless merged."""
        bins = self.manifest.bins
        return min(bins, key=lambda bin: (bin.noise - noise) ** 2 + (bin.blur - blur) ** 2, default=None)


class SessionPool:
    """The sessions of a bundle, opened when first asked for. Safe to use from several threads.

    Those that serve all bins stay. Those of the bins stay while the sizes of their files keep within the
    budget; the least recently used leave first, before another one is opened, and a single one may exceed it.

    Args:
        bundle: where the graphs are.
        engine: opens them.
        memory_bytes: budget for the sessions of bins.

    Attributes:
        engine: as given.
    """

    def __init__(self, bundle: Bundle, engine: Engine, memory_bytes: int) -> None:
        """See the class."""
        self._bundle, self.engine, self._budget = bundle, engine, memory_bytes
        self._shared: dict[str, Session] = {}
        self._binned: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._lock = RLock()

    def get(self, stage: str, bin: Bin | None = None) -> Session:
        """The session of `stage` that serves `bin`. Raises `BundleError` when its graph cannot be loaded."""
        key = self._bundle.key(stage, bin)
        with self._lock:
            if key == SHARED:
                if stage not in self._shared:
                    self._shared[stage] = self._open(stage, key)
                return self._shared[stage]
            if (stage, key) not in self._binned:
                self._make_room(self._bundle.size(stage, key))
                self._binned[stage, key] = self._open_instead(stage, key)
            self._binned.move_to_end((stage, key))
            return self._binned[stage, key]

    def resident(self) -> list[tuple[str, str]]:
        """Stage and bin of the bins' open sessions, the least recently used first."""
        with self._lock:
            return list(self._binned)

    def _make_room(self, size: int) -> None:
        held = sum(self._bundle.size(*key) for key in self._binned)
        while self._binned and held + size > self._budget:
            key, _session = self._binned.popitem(last=False)
            held -= self._bundle.size(*key)

    def _open_instead(self, stage: str, key: str) -> Session:
        """Open a session, at the cost of other bins where the device has not the memory for all."""
        while True:
            try:
                return self._open(stage, key)
            except OutOfMemory:
                if not self._binned:
                    raise
            self._binned.popitem(last=False)

    def _open(self, stage: str, key: str) -> Session:
        path = self._bundle.folder / self._bundle.graph(stage, key)
        return self.engine.open(path, self._bundle.manifest.stages[stage])
