"""The options that fix what the network is; they travel inside every checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from s3diff_runtime.errors import RequestError

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
class NetworkConfig:
    """What an S3Diff network adds to its base model. The defaults are the released model's.

    The paper's ablations are settings of these fields: Table 4 `rank_vae=0` (LoRA on the UNet only),
    `vae_targets=ENCODER_AND_DECODER_TARGETS`, `skip_connections`; Table 5 `modulation`; Table 7 the ranks;
    Table 8 `start_step`. Widths and block counts are read off the base model and are not options.

    Raises:
        RequestError: naming every field that is out of range, at once.
    """

    rank_unet: int = 32
    """Rank of the UNet's LoRA; 0 leaves the UNet as it is."""
    rank_vae: int = 16
    """Rank of the VAE's LoRA; 0 leaves the VAE as it is."""
    lora_alpha: float = 8.0
    """LoRA updates are scaled by lora_alpha / rank (peft's convention and default)."""
    unet_targets: tuple[str, ...] = UNET_TARGETS
    """Names (suffixes) of the UNet layers that get LoRA, as peft matches them."""
    vae_targets: str = ENCODER_TARGETS
    """Regular expression over the VAE's layer names, as peft matches it."""
    skip_connections: bool = False
    """Add zero-like 1x1 convolutions from the encoder's levels to the decoder's (Table 4)."""
    modulation: ModulationKind = "per-block"
    """`per-block` is eq. 4, `shared` drops the block embeddings (one C for all), `none` is plain LoRA."""
    start_step: int | None = None
    """None starts from the clean latent at timestep 999; a number adds that timestep's noise (Table 8)."""
    degradation_axes: tuple[str, str] = ("blur", "noise")
    """Meaning of the estimator's two outputs, in order."""
    fourier_features: int = 64
    """Number m of random frequencies in the Fourier embedding (eq. 2)."""
    positive_prompt: str = POSITIVE_PROMPT
    negative_prompt: str = NEGATIVE_PROMPT
    guidance: float = 1.07
    """Guidance scale of eq. 5; 1 uses the positive prompt alone. The paper states 1.1."""

    def __post_init__(self) -> None:
        """Check every field and report all that is wrong in one error."""
        problems = [
            f"{name} is {getattr(self, name)}, expected 0 or more"
            for name in ("rank_unet", "rank_vae")
            if getattr(self, name) < 0
        ]
        if self.lora_alpha <= 0:
            problems.append(f"lora_alpha is {self.lora_alpha}, expected more than 0")
        if self.modulation not in get_args(ModulationKind):
            problems.append(
                f"modulation is {self.modulation!r}, expected one of {', '.join(get_args(ModulationKind))}"
            )
        if self.start_step is not None and not 0 <= self.start_step <= 999:
            problems.append(f"start_step is {self.start_step}, expected None or 0 to 999")
        if sorted(self.degradation_axes) != ["blur", "noise"]:
            problems.append(
                f"degradation_axes is {self.degradation_axes}, expected blur and noise in some order"
            )
        if self.fourier_features < 1:
            problems.append(f"fourier_features is {self.fourier_features}, expected 1 or more")
        if not self.guidance >= 0:
            problems.append(f"guidance is {self.guidance}, expected 0 or more")
        if problems:
            raise RequestError("wrong network configuration: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> NetworkConfig:
        """Read what `to_dict` wrote.

        Raises:
            RequestError: for unknown fields (a newer version's file) or values out of range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise RequestError(
                f"unknown network option {', '.join(unknown)}; update s3diff-export to read this file"
            )
        tuples = {"unet_targets", "degradation_axes"}
        converted: dict[str, Any] = {n: tuple(v) if n in tuples else v for n, v in values.items()}
        return cls(**converted)

    def scaling(self, rank: int) -> float:
        """The factor s of a LoRA update of that rank."""
        return self.lora_alpha / rank
