"""Graphs as OpenVINO has compiled them, kept in the user's own cache for the next process.

Compiling is most of what a small bundle's start costs, and compiled graphs load in a quarter of the time. At
SD-Turbo's size that would save half at most, and take 3.4 GB: such graphs are compiled anew each time.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.bundle.records import total_size
from s3diff_runtime.errors import JobError
from s3diff_runtime.files import cache_folder, replacing

LARGE = 2**26
"""Bytes of a graph with its weights, above which compiled ones are not worth the space."""
_LEAST = 2**19
"""Bytes below which a graph compiles in no time."""
_LIMIT = 2**29
"""Bytes of all that is kept; what was not used for the longest time goes first."""
_SUFFIX = ".compiled"
_DIGEST = hashlib.sha256().digest_size
_logger = logging.getLogger(__name__)


class CompiledGraphs:
    """What was kept of one bundle's graphs. Safe from several processes; it only ever saves time.

    Args:
        bundle: whose manifest has the hashes of graphs and weights.
        circumstances: what decides how every graph is compiled: version and processor.
    """

    def __init__(self, bundle: Bundle, circumstances: Sequence[str]) -> None:
        self._bundle, self._circumstances = bundle, tuple(circumstances)

    def file_of(self, graph: Path, how: Sequence[str]) -> Path | None:
        """Where a graph of the bundle is kept as it was compiled for `how`, be it there or not.

        None where nothing is kept of it.
        """
        records = self._bundle.manifest.graph_files(graph.relative_to(self._bundle.folder).as_posix())
        if not _LEAST <= total_size(records) <= LARGE:
            return None
        key = json.dumps([[record.sha256 for record in records.values()], self._circumstances, list(how)])
        try:
            return _folder() / f"{hashlib.sha256(key.encode()).hexdigest()}{_SUFFIX}"
        except JobError:  # there is no place for it
            return None


def read_kept(file: Path) -> bytes | None:
    """What was kept in a file; None where there is none, or it is damaged."""
    try:
        content = file.read_bytes()
        os.utime(file)  # the time of its last use
    except OSError:
        return None
    kept = content[_DIGEST:]
    if hashlib.sha256(kept).digest() == content[:_DIGEST]:
        return kept
    _logger.info("%s is damaged, and made anew", file)
    return None


def keep(file: Path, compiled: bytes) -> None:
    """Keep a compiled graph, and of the others what the limit leaves room for."""
    try:
        with replacing(file) as temporary:
            temporary.write_bytes(hashlib.sha256(compiled).digest() + compiled)
    except JobError as error:
        _logger.info("compiled graphs are not kept: %s", error)
        return
    held = 0
    with suppress(OSError):  # another process may be tidying up as well
        found = [(path.stat().st_mtime, path) for path in _folder().glob(f"*{_SUFFIX}")]
        for _, path in sorted(found, reverse=True):
            held += path.stat().st_size
            if held > _LIMIT:
                path.unlink(missing_ok=True)


def _folder() -> Path:
    return cache_folder() / "openvino"
