"""The families: published methods whose checkpoints become bundles. The one table of what each can do.

`s3diff_training.families.<name>` reads a family's checkpoints and computes what its released code computes;
docs/families.md says what each needs and gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.vocabulary import ColorFix

FamilyName = Literal["s3diff", "osediff", "pisasr"]


@dataclass(frozen=True)
class FamilyTraits:
    """What follows from a family for those who call."""

    title: str
    """As its authors write it."""
    summary: str
    """One line for people who choose."""
    color_fix: ColorFix
    """The correction that its released code applies unless told otherwise."""
    lora_modes: tuple[LoraMode, ...]
    """Those that its bundles can be built in, the usual one first."""
    tags_prompt: str = ""
    """How its released code makes a prompt of a picture's `{tags}`; empty where it takes none."""
    estimates: bool = False
    """Whether it reads a degradation off the picture, in the place of which a caller may set one."""
    guides: bool = False
    """Whether it may be guided away from a negative prompt."""
    adjusts: bool = False
    """Whether pixel and semantic strengths can be set, see `strengths`."""

    def has_bins(self, mode: LoraMode) -> bool:
        """Whether a bundle of that mode has bins; what reads no degradation is merged once."""
        return self.estimates and LORA_MODES[mode].has_bins

    def is_adjustable(self, mode: LoraMode) -> bool:
        """Whether strengths are inputs of a bundle of that mode; else they are merged in as 1."""
        return self.adjusts and LORA_MODES[mode].takes_modulation


FAMILIES: Mapping[FamilyName, FamilyTraits] = MappingProxyType(
    {
        "s3diff": FamilyTraits(
            "S3Diff",
            "LoRA turned by the picture's degradation",
            "wavelet",
            tuple(LORA_MODES),
            estimates=True,
            guides=True,
        ),
        "osediff": FamilyTraits(
            "OSEDiff", "plain LoRA, a prompt of tags", "adain", ("merged",), tags_prompt="{tags}, ,"
        ),
        "pisasr": FamilyTraits(
            "PiSA-SR", "two LoRA sets, pixel and semantic", "adain", ("dynamic", "merged"), adjusts=True
        ),
    }
)
if tuple(FAMILIES) != get_args(FamilyName):
    raise TypeError("FAMILIES and FamilyName name different families")
