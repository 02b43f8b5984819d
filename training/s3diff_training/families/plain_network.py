"""What OSEDiff and the methods that grew from its code share: everything but the step from latent to x0."""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor

from s3diff_runtime.stages import finish_of
from s3diff_runtime.vocabulary import SCALE, ColorFix, Pixels
from s3diff_training.data import from_uint8
from s3diff_training.families.released_way import PROCESS_SIZE, brought_back, finished, is_small, prepared
from s3diff_training.network.base import BaseModel
from s3diff_training.network.bicubic import pillow_bicubic
from s3diff_training.network.modulation import ModulationNetwork
from s3diff_training.network.one_step_network import Around, OneStepNetwork, Restored, Sampled, vae_factor


class PlainNetwork(OneStepNetwork):
    """A network whose LoRA no degradation turns, under one prompt.

    Takes the posterior's mode (or a seeded sample). Both sides are padded by reflection to a multiple of the
    VAE's factor, where the released scripts squeeze the picture to one.
    """

    brings_small_back: ClassVar[bool]
    """Whether the released script brings a picture that it enlarged first to its size at the end."""

    def __init__(self, base: BaseModel) -> None:
        super().__init__(base, multiple=vae_factor(base))
        self.modulation = ModulationNetwork()

    @abstractmethod
    def step(
        self,
        latent: Tensor,
        prompts: Tensor,
        one_batch: bool,
        *args: Any,  # noqa: ANN401
        **strengths: Any,  # noqa: ANN401
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What the UNet predicts, by the names of `probes`, and x0 `[N, c, h, w]` float32.

        Families that can be adjusted take the numbers of `Strengths` too; others take no more than the rest.
        """

    def enlarge(self, image: Tensor, scale: int = SCALE) -> Tensor:
        """Pillow's bicubic at 8 bits, see `OneStepNetwork.enlarge`."""
        return pillow_bicubic(image, scale)

    def encode(self, prepared: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The latent `[N, c, h, w]` of `[N, 3, H, W]` in [-1, 1]; a generator samples the posterior."""
        return self.latent_of(self.vae.encode(prepared).latent_dist, generator)

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
        **strengths: float,
    ) -> Restored[Sampled]:
        """See `OneStepNetwork.restore`; `strengths` as `step` takes them."""
        dtype = next(self.vae.parameters()).dtype
        prompts = self.embedded(positive_prompt, self.prompts[0], len(image))
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        with around("enlarge"):
            enlarged = self.enlarge(image, scale)
        with around("vae_encoder"):
            latent = self.encode(self.pad(enlarged).to(dtype), generator)
        with around("unet"):
            predictions, x0 = self.step(latent, prompts, one_batch, **strengths)
        with around("vae_decoder"):
            decoded = self.decode(x0.to(dtype))
        color_fix = self.usual_color_fix(color_fix)
        with around(finish_of(color_fix)):
            finished = self.finish(decoded, enlarged, color_fix)
        return Restored(finished, enlarged, Sampled(latent, predictions, x0, decoded))

    def restore_as_released(
        self,
        pixels: Pixels,
        *,
        scale: int = SCALE,
        color_fix: ColorFix | None = None,
        process_size: int = PROCESS_SIZE,
        **asked: Any,  # noqa: ANN401
    ) -> Pixels:
        """See `OneStepNetwork.restore_as_released`, but with the posterior's mode for a sample of it, and
        without tiles; `process_size` is the script's option, see `released_way.prepared`."""
        before = from_uint8(prepared(pixels, scale, process_size))[None]
        decoded = self.restore(before, scale=1, color_fix="none", **asked).forward.decoded
        result = finished(decoded, before, self.usual_color_fix(color_fix))
        small = is_small(pixels, scale, process_size)
        return brought_back(result, pixels, scale) if small and self.brings_small_back else result
