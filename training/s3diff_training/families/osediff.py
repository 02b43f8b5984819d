"""OSEDiff (`cswry/OSEDiff`): plain LoRA on UNet and encoder, one prompt of each picture's own tags.

The mathematics is that of the released code at commit fcc4f09; where this differs it is said.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3diff_runtime.families import FAMILIES
from s3diff_training.families.family import Family, Loader, has_keys
from s3diff_training.families.plain_lora import PlainLoRA, PlainLoRAFile, frozen
from s3diff_training.families.plain_network import PlainNetwork
from s3diff_training.network.base import FIRST_TIMESTEP, BaseModel, OneStep
from s3diff_training.tensor_files import TensorFile

CHECKPOINT = "osediff.pkl"
_TRAINED_WHOLE = ("conv_in.base_layer.weight", "conv_in.base_layer.bias")


class OSEDiff(PlainNetwork):
    """Stable Diffusion 2.1 with plain LoRA: one step at timestep 999 under one prompt, without guidance.

    See `PlainNetwork` for what differs from the released script.
    """

    family = "osediff"
    brings_small_back = False
    prompts = (FAMILIES["osediff"].tags_prompt.format(tags=""),)

    def __init__(self, base: BaseModel, unet: PlainLoRA, vae: PlainLoRA) -> None:
        super().__init__(base)
        self.one_step = OneStep(FIRST_TIMESTEP, float(base.alphas_cumprod[FIRST_TIMESTEP]), adds_noise=False)
        unet.add(self.unet)
        vae.add(self.vae)

    def trainable_names(self) -> set[str]:
        """LoRA, and the first convolution of the UNet, which is trained whole."""
        return super().trainable_names() | {f"unet.{name}" for name in _TRAINED_WHOLE}

    def step(self, latent: Tensor, prompts: Tensor, one_batch: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Epsilon, and x0 by the formula of DDPM's step."""
        epsilon = self.predict(latent, prompts)
        return {"epsilon": epsilon}, self.one_step.denoise(latent, epsilon)

    def probes(self, guided: bool = True) -> Mapping[str, Mapping[str, Any]]:
        """The only prediction there is."""
        return {"epsilon": {}}


def _read(file: TensorFile, _: Path | None) -> Loader:
    parts = PlainLoRAFile(file, CHECKPOINT)
    unet = parts.lora("rank_unet", parts.unet_layers(), "state_dict_unet")
    vae = parts.lora("rank_vae", parts.layers("vae_lora_encoder_modules"), "state_dict_vae")

    def load(base: BaseModel) -> OSEDiff:
        with torch.device("meta"):  # nothing that training made is ever left as it is initialised
            network = OSEDiff(base, unet, vae)
        unet.fill(network.unet, _TRAINED_WHOLE)
        vae.fill(network.vae)
        return frozen(network)

    return load


FAMILY = Family(
    CHECKPOINT,
    has_keys("rank_unet", "rank_vae", "unet_lora_encoder_modules", "vae_lora_encoder_modules"),
    _read,
)
