"""`train lora`: the paper's training (section 3) of LoRA, modulation and the UNet's `conv_in`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import SCALE
from s3diff_training.checkpoints import capture, write_checkpoint
from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.losses.adversarial import DinoDiscriminator, discriminator_loss, generator_loss
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.network.color import bicubic_upscale, wavelet_fix
from s3diff_training.network.model import S3Diff
from s3diff_training.train.loop import Samples, TrainLoop
from s3diff_training.train.optimisers import Trained
from s3diff_training.train.pairs import HeldOut, TrainingPairs

Degradation = Literal["estimated", "true"]
LossColor = Literal["none", "wavelet"]


@dataclass(frozen=True)
class LoraOptions:
    """The objective. The defaults are the paper's (section 4.1).

    Raises:
        RequestError: naming every option that is out of range, at once.
    """

    lambda_l2: float = 2.0
    lambda_lpips: float = 5.0
    lambda_gan: float = 0.5
    negative_probability: float = 0.05
    """p_n: how often a target is the LR image, under the negative prompt (section 3.2.2)."""
    degradation: Degradation = "estimated"
    """What modulates the LoRA: the frozen estimator's scores, or the true levels of the synthetic pairs,
    which teach the network what scores set by hand should do even where the estimator is unsure."""
    loss_color: LossColor = "none"
    """Colour correction before the losses; `wavelet` frees the network from tones that inference corrects."""

    def __post_init__(self) -> None:
        """Check every option and report all that is wrong in one error."""
        problems = [
            f"{name} is {getattr(self, name)}, expected 0 or more"
            for name in ("lambda_l2", "lambda_lpips", "lambda_gan")
            if not getattr(self, name) >= 0
        ]
        if not 0 <= self.negative_probability <= 1:
            problems.append(f"negative_probability is {self.negative_probability}, expected 0 to 1")
        for name, kind in (("degradation", Degradation), ("loss_color", LossColor)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                problems.append(f"{name} is {getattr(self, name)!r}, expected one of {choices}")
        if problems:
            raise RequestError("wrong training objective: " + "; ".join(problems))


class _Task(NamedTuple):
    """A micro-batch and which of its targets are negative: bool `[N]`."""

    pairs: DegradedBatch
    negative: Tensor


class LoraTrainer:
    """Trains an S3Diff network on a frozen base; a `Trainer` for `TrainLoop`.

    Every step updates the generator on the reconstruction of positive and negative targets, then on the GAN
    loss of positive ones, then the discriminator: the order of the released code.
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
        """Freeze all but what a checkpoint holds.

        Args:
            network: trained in place; its estimator stays as it is.
            options: the objective.
            pairs: to learn from.
            held_out: to validate and to show.
            lpips: on the loop's device; needed unless its weight is 0.
            discriminator: needed unless the GAN's weight is 0.
            provenance: what the checkpoint says of its making.

        Raises:
            RequestError: when a loss with a weight has no network to compute it.
        """
        missing = [
            name
            for name, weight, part in (
                ("LPIPS", options.lambda_lpips, lpips),
                ("GAN", options.lambda_gan, discriminator),
            )
            if weight and part is None
        ]
        if missing:
            raise RequestError(f"the {' and '.join(missing)} loss has a weight but no weights file")
        self._network, self._options, self._pairs, self._held_out = network, options, pairs, held_out
        self._lpips, self._discriminator = lpips, discriminator
        self._provenance = dict(provenance or {})
        network.eval().requires_grad_(False)  # nothing here has a training mode of its own
        own = network.trainable_names()
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in own)
        config = network.config
        self._positive, self._negative = network.encode_prompts(
            [config.positive_prompt, config.negative_prompt]
        ).split(1)

    def trained(self) -> Mapping[str, Trained]:
        """The generator, and the heads of the discriminator where there is one."""
        modules = {"generator": Trained(self._network)}
        if self._discriminator is not None:
            modules["discriminator"] = Trained(self._discriminator, averaged=False)
        return modules

    def step(self, loop: TrainLoop) -> Mapping[str, float]:
        """Update the generator on reconstruction; with a discriminator, then both on the GAN loss."""
        tasks = [self._task(pairs, loop) for pairs in self._pairs.draw(loop)]
        losses = loop.optimize("generator", tasks, lambda task: self._reconstruction(task, loop))
        if self._discriminator is not None:
            fakes: list[Tensor] = []
            losses |= loop.optimize("generator", tasks, lambda task: self._deception(task, fakes, loop))
            seen = list(zip(tasks, fakes, strict=True))
            losses |= loop.optimize("discriminator", seen, lambda pair: self._discrimination(*pair))
        return losses

    def sample(self, loop: TrainLoop) -> Samples:
        """LR, bicubic, restored, truth."""
        return self._held_out.samples(self._restore)

    def validate(self, loop: TrainLoop) -> Mapping[str, float]:
        """Scores on the held-out photographs, as deployed: estimated degradation, guidance, wavelet."""
        return self._held_out.scores(self._restore)

    def export(self, path: Path) -> None:
        """Write the checkpoint."""
        write_checkpoint(capture(self._network, self._provenance), path)

    def _task(self, pairs: DegradedBatch, loop: TrainLoop) -> _Task:
        draws = torch.rand(len(pairs.lr), generator=loop.generator)
        return _Task(pairs, (draws < self._options.negative_probability).to(loop.device))

    def _reconstruction(self, task: _Task, loop: TrainLoop) -> dict[str, Tensor]:
        """Negative targets are the LR images, upscaled, under the negative prompt (section 3.2.2)."""
        restored = self._forward(task.pairs, task.negative, loop)
        low = bicubic_upscale(task.pairs.lr).clamp(0, 1)
        target = torch.where(task.negative[:, None, None, None], low, task.pairs.hr) * 2 - 1
        terms = {"l2": self._options.lambda_l2 * F.mse_loss(restored, target)}
        if self._lpips is not None and self._options.lambda_lpips:
            distance = self._lpips.shifted(restored, target, loop.generator).mean()
            terms["lpips"] = self._options.lambda_lpips * distance
        return terms

    def _deception(self, task: _Task, fakes: list[Tensor], loop: TrainLoop) -> dict[str, Tensor]:
        """The GAN loss, on positive targets only; keeps the images for the discriminator."""
        fake = self._forward(task.pairs, torch.zeros_like(task.negative), loop)
        fakes.append(fake.detach())
        return {"gan": self._options.lambda_gan * generator_loss(self._judge(fake))}

    def _discrimination(self, task: _Task, fake: Tensor) -> dict[str, Tensor]:
        real = task.pairs.hr * 2 - 1
        return {"discriminator": discriminator_loss(self._judge(real), self._judge(fake))}

    def _judge(self, image: Tensor) -> list[Tensor]:
        if self._discriminator is None:
            raise RequestError("there is no discriminator to judge with")
        judged: list[Tensor] = self._discriminator(image)
        return judged

    def _forward(self, pairs: DegradedBatch, negative: Tensor, loop: TrainLoop) -> Tensor:
        """The network's image `[N, 3, H, W]` in about [-1, 1], each under its own prompt."""
        prompts = torch.where(
            negative[:, None, None], self._negative.to(loop.device), self._positive.to(loop.device)
        )
        generator = loop.generator if self._network.one_step.adds_noise else None
        prepared = self._network.prepare(pairs.lr)
        image: Tensor = self._network(prepared, self._levels(pairs), prompts, generator=generator).decoded
        height, width = (SCALE * side for side in pairs.lr.shape[-2:])
        image = image[..., :height, :width]
        if self._options.loss_color == "none":
            return image
        return wavelet_fix(image, bicubic_upscale(pairs.lr).clamp(0, 1) * 2 - 1)

    def _levels(self, pairs: DegradedBatch) -> Tensor:
        if self._options.degradation == "estimated":
            return self._network.degradation(pairs.lr)
        return torch.stack([getattr(pairs, axis) for axis in self._network.config.degradation_axes], dim=1)

    def _restore(self, lr: Tensor) -> Tensor:
        seed = 0 if self._network.one_step.adds_noise else None
        return self._network.restore(lr.to(self._positive.device), seed=seed).image
