"""The sessions of a bundle: opened when first asked for, those of the bins within a budget of memory."""

from collections import OrderedDict
from collections.abc import Collection
from threading import RLock

from s3diff_runtime.bundle.manifest import SHARED
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.interface import Engine, Session
from s3diff_runtime.errors import OutOfMemory


class SessionPool:
    """The sessions of a bundle, opened when first asked for. Safe to use from several threads.

    Those that serve all bins stay. Those of the bins stay while the sizes of their files keep within the
    budget; the least recently used leave first, before another one is opened, and a single one may exceed it.
    Where the device has not the memory for a session, they leave for it, too.
    """

    def __init__(self, bundle: Bundle, engine: Engine, memory_bytes: int) -> None:
        self._bundle, self.engine, self._budget = bundle, engine, memory_bytes
        self._shared: dict[str, Session] = {}
        self._binned: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._lock = RLock()

    def get(self, stage: str, choices: Collection[str] = ()) -> Session:
        """The session of `stage` that serves what was chosen, see `Bundle.key`.

        Raises:
            BundleError: when its graph cannot be loaded.
        """
        key = self._bundle.key(stage, choices)
        with self._lock:
            if key == SHARED:
                if stage not in self._shared:
                    self._shared[stage] = self._open(stage, key)
                return self._shared[stage]
            if (stage, key) not in self._binned:
                size = self._bundle.size(stage, key)
                while self._binned and size + self._held() > self._budget:
                    self._binned.popitem(last=False)
                self._binned[stage, key] = self._open(stage, key)
            self._binned.move_to_end((stage, key))
            return self._binned[stage, key]

    def _held(self) -> int:
        return sum(self._bundle.size(*key) for key in self._binned)

    def _open(self, stage: str, key: str) -> Session:
        graph = self._bundle.checked_graph(stage, key)
        while True:
            try:
                return self.engine.open(graph, self._bundle.manifest.stages[stage])
            except OutOfMemory:
                if not self._binned:
                    raise
            self._binned.popitem(last=False)
