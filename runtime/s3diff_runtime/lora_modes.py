"""The LoRA modes: what each one means for graphs, calls and bundles. The one table of them.

`s3diff_export.graphs.<mode>` makes the layers of a mode; docs/lora-modes.md compares them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

LoraMode = Literal["dynamic", "merged", "fused"]


@dataclass(frozen=True)
class LoraModeTraits:
    """What follows from a mode. Without modulation it takes no part, whatever the mode."""

    summary: str
    """One line for people who choose."""
    has_bins: bool = False
    """Whether weights are folded for points of degradation space: a stage then has a graph for each bin."""
    one_degradation: bool = False
    """Whether a call has one degradation for all of its batch; the modulation is then `[1, blocks, r, r]`."""
    gives_weights: bool = False
    """Whether stages of their own compute the weights of a degradation, which others then read as inputs."""

    @property
    def takes_modulation(self) -> bool:
        """Whether the graphs take the modulation as an extra input."""
        return not self.has_bins


LORA_MODES: Mapping[LoraMode, LoraModeTraits] = MappingProxyType(
    {
        "dynamic": LoraModeTraits("exact, in any batch"),
        "merged": LoraModeTraits("plain graphs, by bin", has_bins=True),
        "fused": LoraModeTraits("exact, one degradation a call", one_degradation=True, gives_weights=True),
    }
)
if tuple(LORA_MODES) != get_args(LoraMode):
    raise TypeError("LORA_MODES and LoraMode name different modes")
