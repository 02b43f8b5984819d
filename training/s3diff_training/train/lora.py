"""`train lora`: the paper's training (section 3) of LoRA, modulation and the UNet's `conv_in`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import Options, option
from s3diff_training.checkpoints.native import capture, write_checkpoint
from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.losses.adversarial import DinoDiscriminator, discriminator_loss, generator_loss
from s3diff_training.losses.flat import flat_error
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.network.bicubic import bicubic
from s3diff_training.network.color import crop_padding, wavelet_fix
from s3diff_training.network.model import ForwardPass, S3Diff
from s3diff_training.train.loop import Samples, TrainLoop
from s3diff_training.train.optimisers import TrainableModule
from s3diff_training.train.pairs import HeldOut, TrainingPairs

Degradation = Literal["estimated", "true"]
LossColor = Literal["none", "wavelet"]


@dataclass(frozen=True)
class LoraOptions(Options):
    """The objective. The defaults are the paper's (section 4.1)."""

    lambda_l2: float = option(2.0, "Weight of L2.", least=0)
    lambda_lpips: float = option(5.0, "Weight of LPIPS; 0 trains without it.", least=0)
    lambda_gan: float = option(0.5, "Weight of the GAN loss; 0 trains without it.", least=0)
    lambda_flat: float = option(0.0, "Weight of the largest errors on crops of one colour.", least=0)
    negative_probability: float = option(
        0.05,
        "How often the target is the low-resolution image, under the negative prompt (section 3.2.2).",
        least=0,
        most=1,
    )
    # The true levels teach what scores set by hand should do even where the estimator is unsure.
    degradation: Degradation = option(
        "estimated", "What turns the LoRA: the estimator's scores, or the true levels of the pairs."
    )
    # `wavelet` frees the network from tones that inference corrects.
    loss_color: LossColor = option("none", "Colour correction before the losses.")


class PromptedBatch(NamedTuple):
    """A micro-batch, and which of its targets are negative, under the negative prompt: bool `[N]`."""

    pairs: DegradedBatch
    negative: Tensor


class LoraTrainer:
    """Trains what a checkpoint holds of an S3Diff network, but the estimator, in place.

    Every step updates the generator on the reconstruction of positive and negative targets, then on the GAN
    loss of positive ones, then the discriminator: the order of the released code. Raises `RequestError` when
    a loss with a weight has no network to compute it.
    """

    product = "checkpoint.safetensors"

    def __init__(
        self,
        network: S3Diff,
        options: LoraOptions,
        pairs: TrainingPairs,
        held_out: HeldOut,
        lpips: LPIPS | None = None,
        discriminator: DinoDiscriminator | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        needed = {"LPIPS": (options.lambda_lpips, lpips), "GAN": (options.lambda_gan, discriminator)}
        missing = [name for name, (weight, part) in needed.items() if weight and part is None]
        if missing:
            raise RequestError(f"the {' and '.join(missing)} loss has a weight but no weights file")
        self._network, self._options, self._pairs, self._held_out = network, options, pairs, held_out
        self._lpips, self._discriminator = lpips, discriminator
        self._provenance = dict(provenance or {})
        network.eval().requires_grad_(False)  # nothing here has a training mode of its own
        own = network.trainable_names()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in own)
        self.modules = {"generator": TrainableModule(network)}
        if discriminator is not None:
            self.modules["discriminator"] = TrainableModule(discriminator, averaged=False)
        self._positive, self._negative = network.encode_prompts(network.prompts).split(1)

    def step(self, loop: TrainLoop) -> Mapping[str, float]:
        """Update the generator on reconstruction; with a discriminator, then both on the GAN loss."""
        batches = [self._prompted(pairs, loop) for pairs in self._pairs.draw(loop)]
        losses = loop.optimize("generator", batches, lambda batch: self._reconstruction_terms(batch, loop))
        discriminator = self._discriminator
        if discriminator is None:
            return losses
        fakes: list[Tensor] = []

        def deceive(batch: PromptedBatch) -> dict[str, Tensor]:
            """On positive targets only."""
            fake = self._forward(batch.pairs, torch.zeros_like(batch.negative), loop)
            fakes.append(fake.detach())
            return {"gan": self._options.lambda_gan * generator_loss(discriminator(fake))}

        def discriminate(seen: tuple[PromptedBatch, Tensor]) -> dict[str, Tensor]:
            real, fake = seen[0].pairs.hr * 2 - 1, seen[1]
            return {"discriminator": discriminator_loss(discriminator(real), discriminator(fake))}

        losses |= loop.optimize("generator", batches, deceive)
        losses |= loop.optimize("discriminator", list(zip(batches, fakes, strict=True)), discriminate)
        return losses

    def sample(self, loop: TrainLoop) -> Samples:
        """LR, bicubic, restored, truth."""
        return self._held_out.samples(self._network)

    def validate(self, loop: TrainLoop) -> Mapping[str, float]:
        """Scores on the held-out photographs, as deployed: estimated degradation, guidance, wavelet."""
        return self._held_out.scores(self._network)

    def export(self, path: Path) -> None:
        """Write the checkpoint."""
        write_checkpoint(capture(self._network, self._provenance), path)

    def _prompted(self, pairs: DegradedBatch, loop: TrainLoop) -> PromptedBatch:
        draws = torch.rand(len(pairs.lr), generator=loop.generator)
        return PromptedBatch(pairs, (draws < self._options.negative_probability).to(loop.device))

    def _reconstruction_terms(self, batch: PromptedBatch, loop: TrainLoop) -> dict[str, Tensor]:
        """Negative targets are the LR images, upscaled, under the negative prompt (section 3.2.2)."""
        restored = self._forward(batch.pairs, batch.negative, loop)
        low = bicubic(batch.pairs.lr)
        target = torch.where(batch.negative[:, None, None, None], low, batch.pairs.hr) * 2 - 1
        terms = {"l2": self._options.lambda_l2 * F.mse_loss(restored, target)}
        if self._options.lambda_flat:
            terms["flat"] = self._options.lambda_flat * flat_error(restored, target)
        if self._lpips is not None and self._options.lambda_lpips:
            distance = self._lpips.shifted(restored, target, loop.generator).mean()
            terms["lpips"] = self._options.lambda_lpips * distance
        return terms

    def _forward(self, pairs: DegradedBatch, negative: Tensor, loop: TrainLoop) -> Tensor:
        """The network's image `[N, 3, H, W]` in about [-1, 1], each under its own prompt."""
        network = self._network
        prompts = torch.where(
            negative[:, None, None], self._negative.to(loop.device), self._positive.to(loop.device)
        )
        if self._options.degradation == "estimated":
            degradation = network.degradation(pairs.lr)
        else:
            degradation = pairs.levels(network.config.degradation_axes)
        generator = loop.generator if network.one_step.adds_noise else None
        forward: ForwardPass = network(network.prepare(pairs.lr), degradation, prompts, generator=generator)
        image = crop_padding(forward.decoded, pairs.lr)
        if self._options.loss_color == "none":
            return image
        return wavelet_fix(image, bicubic(pairs.lr) * 2 - 1)
