"""`train base`: a small VAE and UNet from scratch, as a one-step restorer, before any LoRA.

For people without SD-Turbo, and for the model that ships. The whole network learns to restore, without
modulation, with the positive prompt; `train lora` then adapts it to each image's degradation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from s3diff_runtime.options import Options, option
from s3diff_training.degradations.pipeline import DegradedBatch
from s3diff_training.losses.flat import flat_error
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.network.base import BaseModel
from s3diff_training.network.bicubic import bicubic
from s3diff_training.network.color import crop_padding, wavelet_fix, wavelet_low
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import ForwardPass, S3Diff
from s3diff_training.train.loop import Samples, TrainLoop
from s3diff_training.train.new_base import save_base
from s3diff_training.train.optimisers import TrainableModule
from s3diff_training.train.pairs import HeldOut, TrainingPairs
from s3diff_training.train.residual_stream import ResidualStream


@dataclass(frozen=True)
class BaseLosses(Options):
    """Weights of the loss terms, all on images in [-1, 1] after the wavelet colour correction."""

    lambda_l1: float = option(1.0, "Weight of L1.", least=0)
    # The correction hides low frequencies, and the decoder must still paint them.
    lambda_low: float = option(0.1, "Weight of L1 on low frequencies, before the colour correction.", least=0)
    lambda_lpips: float = option(0.5, "Weight of LPIPS; 0 trains without it.", least=0)
    lambda_lpips_early: float = option(0.1, "Weight of LPIPS at first, while shapes are learnt.", least=0)
    early_fraction: float = option(0.4, "Fraction of the run that counts as early.", least=0, most=1)
    lambda_flat: float = option(1.0, "Weight of the largest errors on crops of one colour.", least=0)
    lambda_stream: float = option(
        0.01, "Weight of what keeps activations within float16; see `ResidualStream`.", least=0
    )


class BaseTrainer:
    """Trains VAE and UNet of a base model together, in place; `lpips` is on the loop's device."""

    product = "base"

    def __init__(
        self,
        base: BaseModel,
        losses: BaseLosses,
        pairs: TrainingPairs,
        held_out: HeldOut,
        lpips: LPIPS | None,
    ) -> None:
        self._base, self._losses, self._pairs, self._held_out = base, losses, pairs, held_out
        self._lpips = lpips
        self._network = S3Diff(base, NetworkConfig(rank_unet=0, rank_vae=0, guidance=1.0))
        self._network.requires_grad_(False)
        base.vae.requires_grad_(True)
        base.unet.requires_grad_(True)
        self._stream = ResidualStream((base.vae, base.unet)) if losses.lambda_stream else None
        self.modules = {"network": TrainableModule(self._network)}
        self._prompt = self._network.encode_prompts(self._network.prompts[:1])

    def step(self, loop: TrainLoop) -> Mapping[str, float]:
        """One update on fresh pairs."""
        self._network.train()
        return loop.optimize("network", self._pairs.draw(loop), lambda batch: self._terms(batch, loop))

    def sample(self, loop: TrainLoop) -> Samples:
        """LR, bicubic, restored, truth."""
        return self._held_out.samples(self._network)

    def validate(self, loop: TrainLoop) -> Mapping[str, float]:
        """Scores on the held-out photographs, beside bicubic's."""
        return self._held_out.scores(self._network)

    def export(self, path: Path) -> None:
        """Write the base model as a diffusers folder."""
        save_base(self._base, path)

    def _terms(self, batch: DegradedBatch, loop: TrainLoop) -> dict[str, Tensor]:
        prepared, prompt = self._network.prepare(batch.lr), self._prompt.to(loop.device)
        unknown = torch.zeros(len(prepared), 2, device=loop.device)  # nothing is modulated here
        forward: ForwardPass = self._network(prepared, unknown, prompt)
        output, truth = crop_padding(forward.decoded, batch.lr), batch.hr * 2 - 1
        restored = wavelet_fix(output, bicubic(batch.lr) * 2 - 1)
        low_frequencies = F.l1_loss(wavelet_low(output), wavelet_low(truth))
        terms = {
            "l1": self._losses.lambda_l1 * F.l1_loss(restored, truth),
            "low": self._losses.lambda_low * low_frequencies,
            "flat": self._losses.lambda_flat * flat_error(restored, truth),
        }
        if self._lpips is not None:
            early = loop.progress < self._losses.early_fraction
            weight = self._losses.lambda_lpips_early if early else self._losses.lambda_lpips
            terms["lpips"] = weight * self._lpips.shifted(restored, truth, loop.generator).mean()
        if self._stream is not None:
            terms["stream"] = self._losses.lambda_stream * self._stream.excess()
        return terms
