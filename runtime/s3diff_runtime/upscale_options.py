"""How an upscaler works, as against what it does to an image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from s3diff_runtime.errors import RequestError


@dataclass(frozen=True)
class UpscaleOptions:
    """Sizes, limits and checks of an `Upscaler`.

    Raises:
        RequestError: naming everything that is out of range.
    """

    tile: int | None = 128
    """Images with a longer side are cut into tiles of this side, in low-resolution pixels: by default what
    the network was trained on. None or 0 never cuts. The default gives way to what engines take."""
    overlap: int | None = None
    """Low-resolution pixels over which neighbouring tiles blend into each other, at most half a tile. None
    takes a quarter of the tile."""
    batch: int = 4
    """Images or tiles that run through the network at once. The default gives way to what engines take."""
    threads: int | None = None
    """Threads that work on one operator on the CPU; None takes the machine's cores."""
    memory_mib: int = 4096
    """Budget for the weights of bins that stay loaded, in MiB of files; for merged bundles."""
    check: Literal["sizes", "hashes"] = "sizes"
    """What is compared of large files on opening; small files are always hashed."""
    check_finite: bool = False
    """Whether each stage's output is searched for NaN and infinity."""

    def __post_init__(self) -> None:
        """Check every field."""
        problems = list(self._problems())
        if problems:
            raise RequestError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if self.tile is not None and self.tile < 0:
            yield f"tile is {self.tile}, expected 0 (never cut) or more low-resolution pixels"
        if self.overlap is not None and not 0 <= 2 * self.overlap <= (self.tile or math.inf):
            yield f"overlap is {self.overlap}, expected from 0 to half the tile of {self.tile}"
        if self.batch < 1:
            yield f"batch is {self.batch}, expected 1 or more"
        if self.threads is not None and self.threads < 1:
            yield f"threads is {self.threads}, expected 1 or more"
        if self.memory_mib < 1:
            yield f"memory_mib is {self.memory_mib}, expected 1 or more"
        if self.check not in ("sizes", "hashes"):
            yield f"check is {self.check!r}, expected sizes or hashes"

    def overlap_of(self, tile: int) -> int:
        """`overlap`, settled for tiles of this side, which may be smaller than was asked for."""
        return tile // 4 if self.overlap is None else min(self.overlap, tile // 2)
