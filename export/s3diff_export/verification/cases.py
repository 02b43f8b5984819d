"""What a bundle is checked on: pictures, real ones or drawn, each with a degradation to restore it with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.bundle.manifest import Bin, chosen_keys
from s3diff_runtime.errors import RequestError
from s3diff_runtime.families import FAMILIES, FamilyName
from s3diff_runtime.strengths import Strengths
from s3diff_runtime.vocabulary import AXES, SCALE, Axis, Pixels
from s3diff_training.data import PhotographFolder
from s3diff_training.drawn_pictures import draw_picture

_DRAWN_SIZES = ((48, 64), (37, 53), (64, 32))  # heights and widths: multiples of the network's and others
_LARGEST_SIDE = 64
_COUNT = 3
_CORNERS = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))  # noise and blur

_STRENGTHS = tuple(
    Strengths(*pair) for pair in ((1.0, 1.0), (1.0, 0.0), (1.2, 0.6), (0.5, 1.5), (0.0, 1.0), (0.7, 0.7))
)
"""One at least for each pass."""


@dataclass(frozen=True)
class CheckCase:
    """One picture and the degradation to restore it with."""

    image: Pixels
    """LR, `[H, W, 3]`."""
    scores: dict[Axis, float]
    """Noise and blur in [0, 1]; empty for the estimator's, and for families that read none."""
    bin: str | None = None
    """The bin whose centre the scores are."""
    scale: int = SCALE
    strengths: Strengths | None = None
    """Of bundles that can be adjusted."""

    @property
    def choices(self) -> frozenset[str]:
        """What decides which graph of a stage serves, see `Bundle.key`."""
        return chosen_keys(self.scale, self.strengths, self.bin)

    @property
    def asked(self) -> dict[str, Any]:
        """The same for the network in PyTorch."""
        strengths = self.strengths._asdict() if self.strengths else {}
        return {"scale": self.scale, **strengths} | {str(axis): at for axis, at in self.scores.items()}

    @property
    def given(self) -> dict[str, NDArray[np.float32]]:
        """What the host gives to the stages for it, besides the picture."""
        strengths = self.strengths._asdict() if self.strengths else {}
        return {f"{name}_scale": np.array([value], np.float32) for name, value in strengths.items()}

    def __str__(self) -> str:
        height, width = self.image.shape[:2]
        named = [*self.scores.items(), *(self.strengths._asdict().items() if self.strengths else ())]
        scores = ", ".join(f"{name} {value:.2f}" for name, value in named)
        return ", ".join(filter(None, (f"picture of {width}x{height}", f"x{self.scale}", scores)))


def check_pictures(folder: Path | None) -> list[Pixels]:
    """LR pictures uint8 `[H, W, 3]` to run a bundle on.

    Args:
        folder: of low-resolution photographs, of which three are cut to 64 pixels a side; None draws
            pictures with the spectrum of photographs, edges and noise.

    Raises:
        RequestError: for a folder without usable pictures.
    """
    if folder is None:
        return [
            draw_picture(height, width, seed, ellipses=4, radii=(4, 20))
            for seed, (height, width) in enumerate(_DRAWN_SIZES)
        ]
    photographs = PhotographFolder(folder, min_side=16, memory_mib=0)
    indices = np.linspace(0, len(photographs) - 1, min(_COUNT, len(photographs))).round().astype(int)
    cut = [photographs.pixels_of(index)[:_LARGEST_SIDE, :_LARGEST_SIDE] for index in indices.tolist()]
    for index, image in zip(indices, cut, strict=True):
        if np.ptp(image) == 0:
            name = photographs.paths[index].name
            raise RequestError(f"check image {name} is of one colour; expected a photograph")
    return [np.ascontiguousarray(image) for image in cut]


def check_cases(
    images: Sequence[Pixels],
    family: FamilyName,
    bins: Sequence[Bin] = (),
    scales: Sequence[int] = (SCALE,),
    adjustable: bool = False,
) -> list[CheckCase]:
    """Every bin, or pair of strengths, once, with the pictures in turn; else every picture, and at extremes.

    Further scales are checked on the first picture, as the first case has it.
    """
    turns = cycle(images)
    if bins:
        cases = [CheckCase(next(turns), {"noise": bin.noise, "blur": bin.blur}, bin.name) for bin in bins]
    else:
        cases = [CheckCase(image, {}) for image in images]
        corners = _CORNERS if FAMILIES[family].estimates else ()
        cases += [CheckCase(next(turns), dict(zip(AXES, corner, strict=True))) for corner in corners]
    if adjustable:
        cases = [CheckCase(next(turns), {}, strengths=strengths) for strengths in _STRENGTHS]
    return cases + [replace(cases[0], scale=scale) for scale in scales if scale != SCALE]
