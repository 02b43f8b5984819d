"""How an upscaler works, as against what it does to an image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.options import option

USUAL_TILE = 128
"""Input pixels of a side: what the networks were trained on."""
CPU_BUDGET_MIB = 4096
"""For the weights of bins where the memory is not theirs alone."""


@dataclass(frozen=True)
class UpscaleOptions(CpuOptions):
    """Sizes, limits and checks of an `Upscaler`."""

    tile: int | None = option(
        USUAL_TILE,
        "Input pixels of a tile's side; larger pictures are cut into tiles, 0 never cuts.",
        least=0,
        shown=f"{USUAL_TILE}, or what the engines take",
    )
    """None never cuts either."""
    overlap: int | None = option(
        None, "Input pixels over which tiles blend into each other.", least=0, shown="a quarter of the tile"
    )
    batch: int = option(
        4,
        "Images or tiles computed at once.",
        least=1,
        shown="4, 1 with OpenVINO, or what the engines take",
    )
    memory_mib: int | None = option(
        None,
        "Budget for the weights of bins that stay loaded, MiB of files.",
        least=1,
        shown=f"half of what is free on the GPU, {CPU_BUDGET_MIB} on a CPU",
    )
    check: Literal["sizes", "hashes"] = option(
        "sizes", "What is compared of large files on opening; small ones are always hashed."
    )
    check_finite: bool = option(False, "Search the output of each stage for NaN and infinity.")

    def problems(self) -> Iterator[str]:
        """An overlap that no tile has room for."""
        if self.overlap is not None and self.tile and 2 * self.overlap > self.tile:
            yield f"overlap is {self.overlap}, expected from 0 to half the tile of {self.tile}"

    def overlap_of(self, tile: int) -> int:
        """`overlap`, settled for tiles of this side, which may be smaller than was asked for."""
        return tile // 4 if self.overlap is None else min(self.overlap, tile // 2)
