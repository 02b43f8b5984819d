"""What a user may choose about the graphs."""

from dataclasses import dataclass
from typing import Literal

from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import Precision


@dataclass(frozen=True)
class GraphOptions(Options):
    """How the network becomes graphs."""

    lora_mode: LoraMode = option(
        "dynamic",
        "; ".join(f"{mode}: {traits.summary}" for mode, traits in LORA_MODES.items()) + ".",
        shown="dynamic; where a family has no modulation, merged",
    )
    precision: Precision = option("fp16", "Of UNet and VAE inside; inputs, outputs, guidance, x0 are fp32.")
    prompts: Literal["folded", "runtime"] = option(
        "folded",
        "folded: the checkpoint's, as constants; runtime: any text, with the text encoder in the bundle.",
    )
    guidance: Literal["on", "off"] = option(
        "on", "off: the positive prompt alone, about half of the UNet's work."
    )
