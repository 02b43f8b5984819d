"""The S3Diff network: degradation, modulation, encoder, one UNet step, decoder (paper section 3)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.stages import finish_of
from s3diff_runtime.vocabulary import SCALE, ColorFix
from s3diff_training.network.base import FIRST_TIMESTEP, BaseModel, OneStep, guide
from s3diff_training.network.bicubic import bicubic
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.network.lora import (
    add_lora,
    lora_layers,
    targeted_layers,
    unet_blocks,
    vae_blocks,
)
from s3diff_training.network.modulation import Modulation, ModulationNetwork
from s3diff_training.network.one_step_network import Around, OneStepNetwork, Restored, Sampled, vae_factor
from s3diff_training.network.skips import SkipConnections


class Encoded(NamedTuple):
    """What the encoder hands to the rest of the network."""

    latent: Tensor
    """`[N, c, h, w]` in the UNet's latent space (after the scaling factor)."""
    skips: list[Tensor]
    """What entered each encoder level; empty without skip connections."""


@dataclass(frozen=True)
class ForwardPass(Sampled):
    """All that the network computes from the prepared image to the decoded one."""

    modulation: Modulation
    skips: list[Tensor]
    """See `Encoded`."""


@dataclass(frozen=True)
class RestoredByDegradation(Restored[ForwardPass]):
    """See `Restored`; there always is a degradation."""

    degradation: Tensor


class S3Diff(OneStepNetwork):
    """A base model adapted by degradation-guided LoRA. Computes what the released code computes.

    Where the released code samples the posterior and runs the prompts one after the other, this takes the
    posterior's mode (or a seeded sample) and runs both prompts in one batch.

    Args:
        base: the text-to-image model; its UNet and VAE are modified in place.
        config: what is added to it.
    """

    family = "s3diff"
    estimator: DegradationEstimator
    one_step: OneStep

    def __init__(self, base: BaseModel, config: NetworkConfig | None = None) -> None:
        vae_levels = len(base.vae.config.block_out_channels)
        unet_levels = len(base.unet.config.block_out_channels)
        super().__init__(base, multiple=vae_factor(base) * 2 ** (unet_levels - 1))  # 64 for SD
        self.config = config = config or NetworkConfig()
        self.prompts = (config.positive_prompt, config.negative_prompt)
        self.guidance = config.guidance
        self.degradation_axes = config.degradation_axes
        self.estimator = DegradationEstimator()
        self.skips = SkipConnections(base.vae) if config.skip_connections else None
        timestep = FIRST_TIMESTEP if config.start_step is None else config.start_step
        self.one_step = OneStep(
            timestep, float(base.alphas_cumprod[timestep]), adds_noise=config.start_step is not None
        )
        alpha, targeted = config.lora_alpha, targeted_layers(self.vae, config.vae_targets)
        unet_count, unet_block = unet_blocks(unet_levels)
        in_decoder = any(name.startswith("decoder.") for name in targeted)
        vae_count, vae_block = vae_blocks(vae_levels, in_decoder)
        self._unet_slot = add_lora(self.unet, config.unet_targets, config.rank_unet, alpha, unet_block)
        self._vae_slot = add_lora(self.vae, config.vae_targets, config.rank_vae, alpha, vae_block)
        sizes = (vae_count, config.rank_vae), (unet_count, config.rank_unet)
        self.modulation = ModulationNetwork(*sizes, config.fourier_features, config.modulation)

    def trainable_names(self) -> set[str]:
        """See `OneStepNetwork.trainable_names`; a checkpoint holds the estimator besides.

        LoRA, modulation, skip connections and, where the UNet has LoRA, its whole `conv_in`.
        """
        own = ["modulation.", "skips."] + (["unet.conv_in."] if self.config.rank_unet else [])
        own += [
            f"{part}.{layer}.lora_"
            for part, model in (("unet", self.unet), ("vae", self.vae))
            for layer in lora_layers(model)
        ]
        return {name for name in self.state_dict() if name.startswith(tuple(own))}

    def enlarge(self, image: Tensor, scale: int = SCALE) -> Tensor:
        """Bicubic (`align_corners=False`), see `OneStepNetwork.enlarge`."""
        return bicubic(image, scale)

    def encode(
        self, image: Tensor, modulation: Modulation, generator: torch.Generator | None = None
    ) -> Encoded:
        """Encode `[N, 3, H, W]` in [-1, 1].

        Args:
            image: sides multiples of `multiple`.
            modulation: matrices of the batch.
            generator: None takes the posterior's mode (deterministic, for deployment); a CPU generator
                samples it, as the released code does.
        """
        with self._vae_slot.holding(modulation.vae):
            if self.skips is None:
                skips: list[Tensor] = []
                posterior = self.vae.encode(image).latent_dist
            else:
                moments, skips = self.skips.encode(self.vae, image)
                posterior = DiagonalGaussianDistribution(moments)
        return Encoded(self.latent_of(posterior, generator), skips)

    def predict_noise(self, latent: Tensor, prompts: Tensor, modulation: Modulation) -> Tensor:
        """Epsilon `[N, c, h, w]` for a latent, prompt embeddings `[N or 1, 77, width]` and matrices."""
        with self._unet_slot.holding(modulation.unet):
            return self.predict(latent, prompts)

    def predict_noise_pair(
        self,
        latent: Tensor,
        positive: Tensor,
        negative: Tensor,
        modulation: Modulation,
        one_batch: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Epsilon of the positive and of the negative prompt (eq. 5), in one batch of 2 N or one by one."""
        if not one_batch:
            first, second = (self.predict_noise(latent, p, modulation) for p in (positive, negative))
            return first, second
        prompts = torch.cat([p.expand(len(latent), -1, -1) for p in (positive, negative)])
        both = self.predict_noise(latent.repeat(2, 1, 1, 1), prompts, modulation.repeat(2))
        first, second = both.chunk(2)
        return first, second

    def decode(self, x0: Tensor, modulation: Modulation, skips: Sequence[Tensor] = ()) -> Tensor:
        """x0 `[N, c, h, w]` in the UNet's latent space to an image `[N, 3, H, W]`, clamped to [-1, 1]."""
        latent = x0 / self.vae.config.scaling_factor
        with self._vae_slot.holding(modulation.vae):
            if self.skips is None:
                image: Tensor = self.vae.decode(latent).sample
            else:
                image = self.skips.decode(self.vae, latent, list(skips))
        return image.clamp(-1, 1)

    def forward(
        self,
        image: Tensor,
        degradation: Tensor,
        positive: Tensor,
        negative: Tensor | None = None,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        one_batch: bool = True,
        around: Around = nullcontext,
    ) -> ForwardPass:
        """The network from prepared image to decoded image, differentiable.

        Args:
            image: `[N, 3, H, W]` in [-1, 1], from `prepare`, in the dtype of the weights.
            degradation: `[N, 2]` in [0, 1].
            positive: prompt embeddings `[N or 1, 77, width]`.
            negative: likewise; None (or guidance 1) evaluates the positive prompt alone.
            guidance: scale of eq. 5.
            generator: samples the posterior and the starting noise; None is deterministic, which a network
                that starts from noise (`start_step`) refuses.
            one_batch: evaluate both prompts at once; else one after the other, as the released code does.
            around: for every stage a context to compute it in, such as one that takes its time.

        Raises:
            RequestError: when starting noise is needed and there is no generator.
        """
        if self.one_step.adds_noise and generator is None:
            raise RequestError("this network starts from noise (start_step); pass a generator or a seed")
        with around("modulation"):
            modulation = self.modulation(degradation)
        with around("vae_encoder"):
            latent, skips = self.encode(image, modulation, generator)
        with around("unet"):
            start = self.one_step.start(latent, generator)
            if negative is None or guidance == 1.0:
                epsilon = self.predict_noise(start, positive, modulation)
                predictions = {"epsilon_positive": epsilon}
            else:
                both = self.predict_noise_pair(start, positive, negative, modulation, one_batch)
                predictions = dict(zip(("epsilon_positive", "epsilon_negative"), both, strict=True))
                epsilon = guide(*both, guidance)
            x0 = self.one_step.denoise(start, epsilon)
        with around("vae_decoder"):
            decoded = self.decode(x0.to(image.dtype), modulation, skips)
        return ForwardPass(latent, predictions, x0, decoded, modulation, skips)

    @torch.no_grad()
    def restore(
        self,
        image: Tensor,
        *,
        noise: float | None = None,
        blur: float | None = None,
        guidance: float | None = None,
        scale: int = SCALE,
        color_fix: ColorFix | None = None,
        positive_prompt: str | Sequence[str] | Tensor | None = None,
        negative_prompt: str | Sequence[str] | Tensor | None = None,
        seed: int | None = None,
        one_batch: bool = True,
        around: Around = nullcontext,
    ) -> RestoredByDegradation:
        """Restore low-resolution images, see `OneStepNetwork.restore`; more arguments are this family's own.

        Args:
            image: `[N, 3, H, W]` float32 in [0, 1].
            noise: replaces the estimated noise score, in [0, 1] (section 4.4).
            blur: replaces the estimated blur score, in [0, 1].
            guidance: scale of eq. 5; None takes the checkpoint's.
            positive_prompt, negative_prompt: as there (Table 9).
            seed: samples the posterior and the starting noise; None is deterministic.
            scale, color_fix, one_batch, around: as there.

        Raises:
            RequestError: for scores outside [0, 1] or a wrong number of prompts.
        """
        dtype = next(self.vae.parameters()).dtype
        positive = self.embedded(positive_prompt, self.config.positive_prompt, len(image))
        negative = self.embedded(negative_prompt, self.config.negative_prompt, len(image))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        guidance = self.config.guidance if guidance is None else guidance
        with around("estimator"):
            degradation = self.degradation(image.to(dtype), noise=noise, blur=blur)
        with around("enlarge"):
            enlarged = self.enlarge(image, scale)
        forward: ForwardPass = self(
            self.pad(enlarged).to(dtype),
            degradation,
            positive,
            negative,
            guidance,
            generator,
            one_batch=one_batch,
            around=around,
        )
        color_fix = self.usual_color_fix(color_fix)
        with around(finish_of(color_fix)):
            finished = self.finish(forward.decoded, enlarged, color_fix)
        return RestoredByDegradation(finished, enlarged, forward, degradation)

    def probes(self, guided: bool = True) -> Mapping[str, Mapping[str, Any]]:
        """The noise of each prompt, at a guidance of 1 and of 0."""
        if not guided:
            return {"epsilon_positive": {}}
        return {"epsilon_positive": {"guidance": 1.0}, "epsilon_negative": {"guidance": 0.0}}

    @torch.no_grad()
    def computed(
        self, image: Tensor, restored: Restored[Any], guided: bool = True
    ) -> dict[str, Tensor | None]:
        """See `OneStepNetwork.computed`; `applied` is the degradation that was used, beside the estimate."""
        forward: ForwardPass = restored.forward
        left_out: dict[str, Tensor | None] = {}
        if (
            guided and "epsilon_negative" not in forward.predictions
        ):  # at a scale of 1, where a bundle takes any scale
            negative = self.encode_prompts(self.prompts[1:])
            left_out["epsilon_negative"] = self.predict_noise(forward.latent, negative, forward.modulation)
        return {
            "degradation": self.degradation(image),
            "applied": restored.degradation,
            "vae_modulation": forward.modulation.vae,
            "unet_modulation": forward.modulation.unet,
            **left_out,
            **super().computed(image, restored, guided),
        }

    def matrices(self, image: Tensor) -> Modulation:
        """Of the images' estimated degradations."""
        modulation: Modulation = self.modulation(self.degradation(image))
        return modulation

    @torch.no_grad()
    def degradation(self, image: Tensor, *, noise: float | None = None, blur: float | None = None) -> Tensor:
        """`[N, 2]`: the estimate for `[N, 3, H, W]` in [0, 1], with scores set by hand in their place.

        Raises:
            RequestError: for scores outside [0, 1].
        """
        given = {axis: value for axis, value in (("noise", noise), ("blur", blur)) if value is not None}
        wrong = [f"{axis}={value}" for axis, value in given.items() if not 0 <= value <= 1]
        if wrong:
            raise RequestError(f"degradation scores must lie in [0, 1]; got {', '.join(wrong)}")
        degradation: Tensor = self.estimator(image)
        for axis, value in given.items():
            degradation[:, self.degradation_axes.index(axis)] = value
        return degradation
