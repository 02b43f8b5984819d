"""What a user may choose about the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from s3diff_runtime.errors import RequestError
from s3diff_runtime.lora_modes import LoraMode

Precision = Literal["fp32", "fp16"]
PromptMode = Literal["folded", "runtime"]
GuidanceMode = Literal["on", "off"]


@dataclass(frozen=True)
class GraphOptions:
    """How the network becomes graphs.

    Raises:
        RequestError: naming every option that is not a choice, at once.
    """

    lora_mode: LoraMode = "dynamic"
    precision: Precision = "fp16"
    """Of the UNet and the VAE inside; inputs, outputs, guidance and x0 are fp32 either way."""
    prompts: PromptMode = "folded"
    guidance: GuidanceMode = "on"

    def __post_init__(self) -> None:
        """Check every option."""
        kinds = {
            "lora_mode": LoraMode,
            "precision": Precision,
            "prompts": PromptMode,
            "guidance": GuidanceMode,
        }
        problems = [
            f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}"
            for name, kind in kinds.items()
            if getattr(self, name) not in get_args(kind)
        ]
        if problems:
            raise RequestError("wrong graph options: " + "; ".join(problems))
