"""The kernels that TensorRT-RTX compiles on a GPU, kept between contexts and between processes."""

import logging
from pathlib import Path
from threading import Lock
from typing import Any

from s3diff_runtime.errors import JobError
from s3diff_runtime.files import cache_folder, replacing

_logger = logging.getLogger(__name__)


def kernels_file(engines: str, gpu: str) -> Path:
    """Where the kernels of a set of engines on a kind of GPU are kept: in the user's own cache.

    Not in the bundle, whose files have their hashes in the manifest: kernels are executable, and a bundle may
    come from anybody and lie where nobody may write.
    """
    plain = "".join(letter if letter.isalnum() else "-" for letter in gpu.lower())
    return cache_folder() / f"{engines}-on-{plain}.kernels"


class KernelCache:
    """The kernels of one set of engines, in one file, which all contexts share. Safe from several threads.

    It only saves time: a file that cannot be read, or is another version's, is as good as none.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._lock = file, Lock()
        self._cache: Any = None
        self._kept = b""
        self._may_have_grown = False

    def attach(self, config: Any) -> None:  # noqa: ANN401 - an IRuntimeConfig
        """Let the context that a configuration is for take its kernels from here, and leave new ones."""
        with self._lock:
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                self._read()
            if not config.set_runtime_cache(self._cache):
                _logger.info("kernels are not kept: TensorRT takes no cache of them")

    def may_have_grown(self) -> None:
        """Work was queued that may have needed new kernels."""
        self._may_have_grown = True

    def save(self) -> None:
        """Write the file, where there are new kernels."""
        with self._lock:
            if self._cache is None or not self._may_have_grown:
                return
            self._may_have_grown = False
            content = bytes(memoryview(self._cache.serialize()))
            if content == self._kept:
                return
            try:
                with replacing(self._file) as temporary:
                    temporary.write_bytes(content)
            except JobError as error:
                _logger.info("kernels are not kept: %s", error)
            self._kept = content

    def _read(self) -> None:
        try:
            content = self._file.read_bytes()
        except OSError:
            return
        if self._cache.deserialize(content):
            self._kept = content
        else:
            _logger.info("the kernels of %s are not for this TensorRT and GPU", self._file)
