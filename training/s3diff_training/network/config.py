"""The options that fix what the network is; they travel inside every checkpoint."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_runtime.vocabulary import AXES

_LONGEST_PATTERN = 400
ModulationKind = Literal["per-block", "shared", "none"]
POSITIVE_PROMPT = (
    "A high-resolution, 8K, ultra-realistic image with sharp focus, vibrant colors, and natural lighting."
)
NEGATIVE_PROMPT = (
    "oil painting, cartoon, blur, dirty, messy, low quality, deformation, low resolution, oversmooth"
)
UNET_TARGETS = (
    *("to_k", "to_q", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_shortcut", "conv_out"),
    *("proj_in", "proj_out", "ff.net.2", "ff.net.0.proj"),
)
_VAE_LAYERS = r"\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_k|to_q|to_v|to_out\.0)$"
ENCODER_TARGETS = "^encoder" + _VAE_LAYERS
ENCODER_AND_DECODER_TARGETS = "^(encoder|decoder)" + _VAE_LAYERS
DECODER_TARGETS = "^decoder" + _VAE_LAYERS


@dataclass(frozen=True)
class NetworkConfig(Options):
    """What an S3Diff network adds to its base model. The defaults are the released model's.

    The paper's ablations are settings of these fields: Table 4 `rank_vae=0` (LoRA on the UNet only),
    `vae_targets=ENCODER_AND_DECODER_TARGETS`, `skip_connections`; Table 5 `modulation`; Table 7 the ranks;
    Table 8 `start_step`. Widths and block counts are read off the base model and are not options.
    """

    rank_unet: int = option(32, "Rank of the UNet's LoRA; 0 leaves the UNet as it is.", least=0, most=1024)
    rank_vae: int = option(16, "Rank of the VAE's LoRA; 0 leaves the VAE as it is.", least=0, most=1024)
    lora_alpha: float = option(
        8.0,
        "LoRA updates are scaled by lora_alpha / rank (peft's convention and default).",
        above=0,
        most=1e6,
    )
    unet_targets: tuple[str, ...] = option(
        UNET_TARGETS, "Names (suffixes) of the UNet layers that get LoRA, as peft matches them."
    )
    vae_targets: str = option(
        ENCODER_TARGETS, "Regular expression over the VAE's layer names, as peft matches it."
    )
    skip_connections: bool = option(
        False, "Add connections (1x1 convolutions) from the encoder's levels to the decoder's."
    )
    modulation: ModulationKind = option("per-block", "One matrix per block, one for all, or plain LoRA.")
    start_step: int | None = option(
        None,
        "Start from the latent with that timestep's noise; the clean latent at timestep 999 by default.",
        least=0,
        most=999,
    )
    degradation_axes: tuple[str, str] = option(
        ("blur", "noise"), "Meaning of the estimator's two outputs, in order."
    )
    fourier_features: int = option(
        64, "Number m of random frequencies in the Fourier embedding (eq. 2).", least=1, most=4096
    )
    positive_prompt: str = option(POSITIVE_PROMPT, "Prompt of the targets of high resolution.")
    negative_prompt: str = option(NEGATIVE_PROMPT, "Prompt of those of low resolution.")
    guidance: float = option(
        1.07,
        "Scale of the guidance that the checkpoint asks for (eq. 5; the paper: 1.1); 1 is none.",
        least=0,
        most=1000,
    )

    def problems(self) -> Iterator[str]:
        """What a file may hold in a field's place, and axes that are not the two there are."""
        for name in ("vae_targets", "positive_prompt", "negative_prompt"):
            if not is_text(getattr(self, name)):
                yield f"{name} is no text"
        if self.skip_connections not in (True, False):
            yield "skip_connections is neither true nor false"
        targets = self.unet_targets
        if (
            not isinstance(targets, tuple)
            or not targets
            or not all(is_text(each) and each for each in targets)
        ):
            yield "unet_targets are no names of layers"
        if is_text(self.vae_targets) and not _is_tame(self.vae_targets):
            yield "vae_targets is no simple regular expression, such as ^encoder\\..*(conv1|conv2)$"
        if not all(map(is_text, self.degradation_axes)) or sorted(self.degradation_axes) != sorted(AXES):
            yield f"degradation_axes is {self.degradation_axes}, expected blur and noise in some order"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read what a checkpoint's metadata hold of it.

        Raises:
            RequestError: for unknown fields (a newer version's file) or values out of range.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise RequestError(
                f"unknown network option {', '.join(unknown)}; update s3diff-export to read this file"
            )
        read: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
        return cls(**read)


def is_text(value: object) -> bool:
    """Whether it is a text that any file can hold: JSON and pickles may carry halves of characters."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_tame(pattern: str) -> bool:
    """Whether a pattern, which a file may bring, compiles and cannot take for ever on a layer's name."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    repeated, groups = len(re.findall(r"[*+{]", pattern)), pattern.count("(")
    return (
        0 < len(pattern) <= _LONGEST_PATTERN
        and max(repeated, groups) <= 3
        and not re.search(r"\)[*+{]", pattern)
    )
