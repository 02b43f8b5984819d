"""The base model, a diffusers pipeline like SD-Turbo, and its one step of diffusion (paper section 3.1)."""

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from s3diff_runtime.errors import CheckpointError
from s3diff_training.logs import quiet_libraries

FIRST_TIMESTEP = 999
"""SD-Turbo's first step, the only one taken when no noise is added."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseModel:
    """The parts of a text-to-image pipeline that S3Diff adapts, in float32 on the CPU."""

    tokenizer: Any
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    alphas_cumprod: Tensor
    """`[1000]` float32, from the scheduler's configuration."""


@quiet_libraries()
def load_base(source: str | Path) -> BaseModel:
    """Load a base model.

    Args:
        source: a diffusers pipeline folder (tokenizer, text_encoder, scheduler, unet, vae), or a hub id
            such as `stabilityai/sd-turbo`.

    Raises:
        CheckpointError: when a part is missing or unreadable, or the scheduler cannot serve one step.
    """
    folder = Path(source)
    if folder.exists():
        missing = [
            part
            for part in ("tokenizer", "text_encoder", "scheduler", "unet", "vae")
            if not (folder / part).is_dir()
        ]
        if missing:
            raise CheckpointError(
                f"{folder} has no {', '.join(missing)}; expected a diffusers folder like SD-Turbo's"
            )
    elif len(str(source).split("/")) != 2 or str(source).startswith((".", "/", "~")):
        raise CheckpointError(
            f"base model {source} does not exist; expected a diffusers folder or a hub id (owner/name)"
        )
    options: dict[str, Any] = {"local_files_only": folder.exists()}
    weights = {**options, "torch_dtype": torch.float32}
    try:
        return BaseModel(
            tokenizer=AutoTokenizer.from_pretrained(source, subfolder="tokenizer", **options),
            text_encoder=CLIPTextModel.from_pretrained(
                source, subfolder="text_encoder", dtype=torch.float32, **options
            ),
            vae=AutoencoderKL.from_pretrained(source, subfolder="vae", **weights),
            unet=UNet2DConditionModel.from_pretrained(source, subfolder="unet", **weights),
            alphas_cumprod=one_step_alphas(
                DDPMScheduler.load_config(source, subfolder="scheduler", **options)
            ),
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot load the base model {source}: {reason}") from error


def one_step_alphas(config: dict[str, Any]) -> Tensor:
    """The cumulative alphas of a scheduler configuration, checked for one-step use.

    `timestep_spacing`, `clip_sample` and `thresholding` would silently change x0 in a sampler that honours
    them; here the step is a closed formula, so they are corrected with a warning. Anything else that
    changes the result is refused.

    Returns:
        `[num_train_timesteps]` float32.

    Raises:
        CheckpointError: for another prediction type, zero terminal SNR, or too few timesteps.
    """
    problems = []
    if config.get("prediction_type", "epsilon") != "epsilon":
        problems.append(f"prediction_type is {config['prediction_type']!r}, expected 'epsilon'")
    if config.get("rescale_betas_zero_snr"):
        problems.append("rescale_betas_zero_snr is true, which leaves no signal to divide by at timestep 999")
    if config.get("num_train_timesteps", 1000) <= FIRST_TIMESTEP:
        problems.append(f"num_train_timesteps is {config['num_train_timesteps']}, expected 1000")
    if problems:
        raise CheckpointError(
            f"this scheduler cannot serve S3Diff's one step: {'; '.join(problems)}; use SD-Turbo's scheduler"
        )
    wanted = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    # A configuration without the key means the sampler's own default, which for clip_sample is true.
    assumed = {"timestep_spacing": "leading", "clip_sample": True, "thresholding": False}
    wrong = {key: config.get(key, assumed[key]) for key in wanted}
    wrong = {key: value for key, value in wrong.items() if value != wanted[key]}
    if wrong:
        log.warning(
            "scheduler configuration corrected: %s",
            ", ".join(
                f"{key} {json.dumps(value)} -> {json.dumps(wanted[key])}" for key, value in wrong.items()
            ),
        )
    return DDPMScheduler.from_config({**config, **wanted}).alphas_cumprod.float()


@dataclass(frozen=True)
class OneStep:
    """The timestep of the only UNet evaluation and the signal left at it."""

    timestep: int
    alpha_cumprod: float
    """Cumulative product of 1 - beta at `timestep`; 0.00466 at 999 for SD-Turbo."""
    adds_noise: bool
    """Whether the latent is first noised to `timestep` (Table 8)."""

    def start(self, latent: Tensor, generator: torch.Generator | None) -> Tensor:
        """The UNet's input: the latent itself, or the latent with the timestep's noise added."""
        if not self.adds_noise:
            return latent
        noise = torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)
        return math.sqrt(self.alpha_cumprod) * latent + math.sqrt(1 - self.alpha_cumprod) * noise

    def denoise(self, latent: Tensor, noise_prediction: Tensor) -> Tensor:
        """x0 in float32: errors of the prediction grow by 1/sqrt(alpha) = 14.6, too much for fp16."""
        signal, noise = math.sqrt(self.alpha_cumprod), math.sqrt(1 - self.alpha_cumprod)
        return (latent.float() - noise * noise_prediction.float()) / signal


def guide(positive: Tensor, negative: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance in float32 (eq. 5): `negative + scale (positive - negative)`."""
    return negative.float() + scale * (positive.float() - negative.float())
