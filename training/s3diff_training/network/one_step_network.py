"""What the networks of all families share: an adapted base model that restores a picture in one step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError
from s3diff_runtime.families import FAMILIES, FamilyName
from s3diff_runtime.vocabulary import SCALE, ColorFix, Pixels
from s3diff_training.network.base import BaseModel, OneStep, ResidualStep
from s3diff_training.network.color import correct_color, reflect_to_multiple
from s3diff_training.network.estimator import DegradationEstimator
from s3diff_training.network.modulation import Modulation, ModulationNetwork
from s3diff_training.network.skips import SkipConnections

Around = Callable[[str], AbstractContextManager[object]]
"""Called with the name of each stage (of `s3diff_runtime.stages`) for a context to compute it in."""


@dataclass(frozen=True)
class Sampled:
    """What a network computes from the enlarged picture to the decoded one."""

    latent: Tensor
    """`[N, c, h, w]` in the UNet's latent space, as the encoder gives it."""
    predictions: Mapping[str, Tensor]
    """`[N, c, h, w]` each: what the UNet predicted, by the names of `OneStepNetwork.probes`."""
    x0: Tensor
    """`[N, c, h, w]` float32: the restored latent, in the UNet's latent space."""
    decoded: Tensor
    """`[N, 3, H, W]` in [-1, 1], with the padding of `pad`."""


F = TypeVar("F", bound=Sampled, covariant=True)


@dataclass(frozen=True)
class Restored(Generic[F]):
    """A batch of restored pictures and how they came about."""

    image: Tensor
    """`[N, 3, scale H, scale W]` float32 in [0, 1]."""
    enlarged: Tensor
    """The same size: the input as `enlarge` made it, whose colours the result got."""
    forward: F
    degradation: Tensor | None = None
    """`[N, 2]` in [0, 1], in the order of `degradation_axes`; None for families that read none."""


class OneStepNetwork(nn.Module, ABC):
    """A base model whose UNet and VAE a family adapted, and the steps around them that families share.

    Args:
        base: the text-to-image model; its UNet and VAE are modified in place.
        multiple: high-resolution pixels; `pad` brings both sides to a multiple of it.
    """

    family: ClassVar[FamilyName]
    estimator: DegradationEstimator | None
    """Reads the degradation off a picture; None for families that do without."""
    skips: SkipConnections | None
    degradation_axes: tuple[str, ...] = ()
    """Meaning of the estimator's outputs, in order."""
    modulation: ModulationNetwork
    one_step: OneStep | ResidualStep
    prompts: tuple[str, ...]
    """The texts that condition it unless told otherwise: the positive one and, where it is guided, the
    negative."""
    guidance: float = 1.0
    """Scale of the guidance away from the negative prompt; 1 is none."""

    def __init__(self, base: BaseModel, multiple: int) -> None:
        super().__init__()
        self.tokenizer = base.tokenizer
        self.text_encoder = base.text_encoder.requires_grad_(False).eval()
        self.vae = base.vae
        self.unet = base.unet
        self.estimator = self.skips = None
        self.vae_factor = vae_factor(base)
        self.multiple = multiple
        """Sides that the network accepts, in high-resolution pixels, are multiples of this."""

    @abstractmethod
    def enlarge(self, image: Tensor, scale: int = SCALE) -> Tensor:
        """Low-resolution `[N, 3, H, W]` in [0, 1] to the size of the result, clamped to [0, 1]."""

    def pad(self, enlarged: Tensor) -> Tensor:
        """What `enlarge` made to the encoder's input: to [-1, 1], reflect-padded right and bottom."""
        return reflect_to_multiple(enlarged * 2 - 1, self.multiple)

    def prepare(self, image: Tensor) -> Tensor:
        """Low-resolution `[N, 3, H, W]` in [0, 1] to the encoder's input: enlarged and padded."""
        return self.pad(self.enlarge(image))

    def finish(self, decoded: Tensor, enlarged: Tensor, color_fix: ColorFix) -> Tensor:
        """From the decoded picture `[N, 3, H, W]` in [-1, 1] to the result, float32 in [0, 1].

        Crops the padding and brings the colours back to those of `enlarged`, whose size the result has.
        """
        cropped = decoded[..., : enlarged.shape[-2], : enlarged.shape[-1]]
        return correct_color((cropped.float() + 1) / 2, enlarged, color_fix)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `[len(prompts), 77]` int64, padded and truncated."""
        tokens: Tensor = self.tokenizer(
            list(prompts),
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return tokens

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompt embeddings `[len(prompts), 77, width]` float32 of the text encoder's last layer."""
        tokens = self.tokenize(prompts).to(self.text_encoder.device)
        embeddings: Tensor = self.text_encoder(tokens)[0]
        return embeddings

    def latent_of(self, posterior: DiagonalGaussianDistribution, generator: torch.Generator | None) -> Tensor:
        """The latent `[N, c, h, w]` of the encoder's posterior: its mode, or a generator's sample of it."""
        latent: Tensor = posterior.mode() if generator is None else posterior.sample(generator)
        return latent * self.vae.config.scaling_factor

    def predict(self, latent: Tensor, prompts: Tensor) -> Tensor:
        """What the UNet gives, `[N, c, h, w]`, for a latent and prompt embeddings `[N or 1, 77, width]`."""
        timestep = torch.tensor(self.one_step.timestep, device=latent.device)
        context = prompts.to(latent).expand(len(latent), -1, -1)
        prediction: Tensor = self.unet(latent, timestep, encoder_hidden_states=context).sample
        return prediction

    @abstractmethod
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
        """Restore low-resolution images at a scale.

        Args:
            image: `[N, 3, H, W]` float32 in [0, 1].
            scale: sides of the result over those of the image.
            color_fix: colour correction against the enlarged image; None takes the family's.
            positive_prompt: one prompt, or one per image, or what `encode_prompts` made of them; None takes
                the network's own.
            seed: samples the posterior, as released codes do; None takes its mode.
            one_batch: evaluate all that the UNet is asked for in one batch; else one after the other.
            around: for every stage a context to compute it in, such as one that takes its time.

        Raises:
            RequestError: for a wrong number of prompts.
        """

    def restore_as_released(
        self,
        pixels: Pixels,
        *,
        scale: int = SCALE,
        color_fix: ColorFix | None = None,
        **asked: Any,  # noqa: ANN401 - further arguments of `restore`
    ) -> Pixels:
        """Restore one picture, uint8 `[H, W, 3]`, to the size and the levels that the released script gives.

        Raises:
            RequestError: for a family whose script does nothing else than `restore`.
        """
        raise RequestError(f"{FAMILIES[self.family].title}'s released code prepares and finishes alike")

    @abstractmethod
    def probes(self, guided: bool = True) -> Mapping[str, Mapping[str, Any]]:
        """How the UNet's stage lays open what it predicts: by the name of each of `Sampled.predictions`, the
        inputs under which x0 follows from that one alone (`OneStep.prediction`)."""

    def computed(
        self, image: Tensor, restored: Restored[Any], guided: bool = True
    ) -> dict[str, Tensor | None]:
        """The tensors of every stage for an image and what `restore` made of it, by their names, with all
        predictions of `probes(guided)`."""
        forward = restored.forward
        return {
            "enlarged": restored.enlarged,
            "tokens": self.tokenize(self.prompts),
            "prompts": self.encode_prompts(self.prompts),
            "latent": forward.latent,
            **forward.predictions,
            "x0": forward.x0,
            "decoded": forward.decoded,
        }

    def trainable_names(self) -> set[str]:
        """Names, in this module's state, of what a checkpoint of the family holds."""
        return {name for name in self.state_dict() if ".lora_" in name}

    def matrices(self, image: Tensor) -> Modulation:
        """What turns the LoRA for images `[N, 3, H, W]` in [0, 1]; nothing where it is the same for all."""
        return Modulation(None, None)

    def usual_color_fix(self, color_fix: ColorFix | None) -> ColorFix:
        """The correction that was asked for, or the family's."""
        return color_fix or FAMILIES[self.family].color_fix

    def embedded(self, prompt: str | Sequence[str] | Tensor | None, usual: str, images: int) -> Tensor:
        """Embeddings `[1 or images, 77, width]` of what was asked for, `usual` in the place of None.

        Raises:
            RequestError: for a number of prompts that is neither one nor one per image.
        """
        prompt = usual if prompt is None else prompt  # "" is a prompt too
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if len(prompts) not in (1, images):
            raise RequestError(f"{len(prompts)} prompts for {images} images; expected one, or one per image")
        return prompts if isinstance(prompts, Tensor) else self.encode_prompts(prompts)


def vae_factor(base: BaseModel) -> int:
    """Pixels of a picture's side for each of its latent."""
    return int(2 ** (len(base.vae.config.block_out_channels) - 1))
