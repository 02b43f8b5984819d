"""How strongly the pixel and the semantic part of a restoration count, for families that can be adjusted.

The network predicts a residual p with both of its LoRA sets, and one with the pixel set alone; what is taken
off the latent is `pixel p_pixel + semantic (p_both - p_pixel)` (PiSA-SR, eq. 9).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

PassName = Literal["both", "pixel", "two"]


class Strengths(NamedTuple):
    """Of a picture; any numbers. (1, 1) is what the network was trained for, (1, 0) pixel fidelity alone."""

    pixel: float = 1.0
    semantic: float = 1.0

    @property
    def passes(self) -> PassName:
        """What the UNet has to be evaluated for: a term that counts nothing is left out."""
        if self.semantic == 0:
            return "pixel"
        return "both" if self.pixel == self.semantic else "two"


PASSES: Mapping[PassName, tuple[float, ...]] = MappingProxyType(
    {"both": (1.0,), "pixel": (0.0,), "two": (1.0, 0.0)}
)
"""By name, how much of the semantic LoRA each evaluation of one batch has; the UNet has a graph for each."""
