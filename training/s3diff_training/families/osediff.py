"""OSEDiff (`cswry/OSEDiff`): plain LoRA on UNet and encoder, one prompt of each picture's own tags.

The mathematics is that of the released code at commit fcc4f09; where this differs it is said.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.stages import finish_of
from s3diff_runtime.vocabulary import SCALE, ColorFix, Pixels
from s3diff_training.families.family import Family, Loader, has_keys
from s3diff_training.families.plain_lora import ALPHA, PlainLoRAFile, fill, frozen_network, require_layers
from s3diff_training.families.released_way import PROCESS_SIZE, restored_as_released
from s3diff_training.network.base import FIRST_TIMESTEP, BaseModel, OneStep
from s3diff_training.network.lora import add_lora
from s3diff_training.network.modulation import ModulationNetwork
from s3diff_training.network.one_step_network import Around, OneStepNetwork, Restored, Sampled, vae_factor
from s3diff_training.network.pillow import pillow_bicubic
from s3diff_training.tensor_files import TensorFile

CHECKPOINT = "osediff.pkl"
_EXPECTED = f"the released {CHECKPOINT} and Stable Diffusion 2.1-base"
_TRAINED_WHOLE = ("conv_in.base_layer.weight", "conv_in.base_layer.bias")


@dataclass(frozen=True)
class OSEDiffConfig:
    """What a checkpoint says of the network."""

    rank_unet: int
    rank_vae: int
    unet_layers: tuple[str, ...]
    """Full names of those with LoRA."""
    vae_layers: tuple[str, ...]


class OSEDiff(OneStepNetwork):
    """Stable Diffusion 2.1 with plain LoRA: one step at timestep 999 under one prompt, without guidance.

    Takes the posterior's mode (or a seeded sample). Both sides are padded by reflection to a multiple of the
    VAE's factor, where the released script squeezes the picture to one.
    """

    family = "osediff"
    prompts = (FAMILIES["osediff"].tags_prompt.format(tags=""),)

    def __init__(self, base: BaseModel, config: OSEDiffConfig) -> None:
        super().__init__(base, multiple=vae_factor(base))
        self.one_step = OneStep(FIRST_TIMESTEP, float(base.alphas_cumprod[FIRST_TIMESTEP]), adds_noise=False)
        add_lora(self.unet, config.unet_layers, config.rank_unet, ALPHA, lambda _: 0)
        add_lora(self.vae, config.vae_layers, config.rank_vae, ALPHA, lambda _: 0)
        self.modulation = ModulationNetwork((0, 0), (0, 0), features=1, kind="none")

    def trainable_names(self) -> set[str]:
        """LoRA, and the first convolution of the UNet, which is trained whole."""
        return super().trainable_names() | {f"unet.{name}" for name in _TRAINED_WHOLE}

    def enlarge(self, image: Tensor, scale: int = SCALE) -> Tensor:
        """Pillow's bicubic at 8 bits, see `OneStepNetwork.enlarge`."""
        return pillow_bicubic(image, scale)

    def encode(self, prepared: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The latent `[N, c, h, w]` of `[N, 3, H, W]` in [-1, 1]; a generator samples the posterior."""
        posterior = self.vae.encode(prepared).latent_dist
        latent: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return latent * self.vae.config.scaling_factor

    def predict(self, latent: Tensor, prompts: Tensor) -> Tensor:
        """Epsilon `[N, c, h, w]` for a latent and prompt embeddings `[N or 1, 77, width]`."""
        timestep = torch.tensor(self.one_step.timestep, device=latent.device)
        context = prompts.to(latent).expand(len(latent), -1, -1)
        epsilon: Tensor = self.unet(latent, timestep, encoder_hidden_states=context).sample
        return epsilon

    def decode(self, x0: Tensor) -> Tensor:
        """x0 `[N, c, h, w]` to a picture `[N, 3, H, W]`, clamped to [-1, 1]."""
        image: Tensor = self.vae.decode(x0 / self.vae.config.scaling_factor).sample
        return image.clamp(-1, 1)

    @torch.no_grad()
    def restore(
        self,
        image: Tensor,
        *,
        scale: int = SCALE,
        color_fix: ColorFix | None = None,
        positive_prompt: str | Sequence[str] | Tensor | None = None,
        seed: int | None = None,
        one_batch: bool = True,
        around: Around = nullcontext,
    ) -> Restored[Sampled]:
        """See `OneStepNetwork.restore`; there is one evaluation, so `one_batch` changes nothing."""
        dtype = next(self.vae.parameters()).dtype
        prompts = self.embedded(positive_prompt, self.prompts[0], len(image))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with around("enlarge"):
            enlarged = self.enlarge(image, scale)
        with around("vae_encoder"):
            latent = self.encode(self.pad(enlarged).to(dtype), generator)
        with around("unet"):
            epsilon = self.predict(latent, prompts)
            x0 = self.one_step.denoise(latent, epsilon)
        with around("vae_decoder"):
            decoded = self.decode(x0.to(dtype))
        color_fix = self.usual_color_fix(color_fix)
        with around(finish_of(color_fix)):
            finished = self.finish(decoded, enlarged, color_fix)
        return Restored(finished, enlarged, Sampled(latent, {"epsilon": epsilon}, x0, decoded))

    def restore_as_released(
        self,
        pixels: Pixels,
        *,
        scale: int = SCALE,
        color_fix: ColorFix | None = None,
        process_size: int = PROCESS_SIZE,
        **asked: Any,  # noqa: ANN401
    ) -> Pixels:
        """See `OneStepNetwork.restore_as_released`; small pictures keep the size they were enlarged to."""
        return restored_as_released(
            self,
            pixels,
            asked,
            scale=scale,
            color_fix=color_fix,
            process_size=process_size,
            brings_back=False,
        )

    def probes(self, guided: bool = True) -> Mapping[str, Mapping[str, Any]]:
        """The only prediction there is."""
        return {"epsilon": {}}


def _read(file: TensorFile, estimator: Path | None) -> Loader:
    if estimator is not None:
        raise RequestError("OSEDiff has no degradation estimator; leave out --estimator")
    parts = PlainLoRAFile(file, f"the released {CHECKPOINT}")
    config = OSEDiffConfig(
        parts.rank("rank_unet"),
        parts.rank("rank_vae"),
        parts.unet_layers(),
        parts.layers("vae_lora_encoder_modules"),
    )
    unet, vae = parts.tensors("state_dict_unet"), parts.tensors("state_dict_vae")

    def load(base: BaseModel) -> OSEDiff:
        require_layers(base.unet, config.unet_layers, _EXPECTED)
        require_layers(base.vae, config.vae_layers, _EXPECTED)
        with torch.device("meta"):  # nothing that training made is ever left as it is initialised
            network = OSEDiff(base, config)
        fill(network.unet, unet, _TRAINED_WHOLE, _EXPECTED)
        fill(network.vae, vae, (), _EXPECTED)
        frozen_network(network)
        return network

    return load


FAMILY = Family(
    CHECKPOINT,
    has_keys("rank_unet", "rank_vae", "unet_lora_encoder_modules", "vae_lora_encoder_modules"),
    _read,
)
