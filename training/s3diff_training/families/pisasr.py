"""PiSA-SR (`csslc/PiSA-SR`): two plain LoRA sets on the UNet, pixel and semantic, and a residual for epsilon.

The mathematics is that of the released code at commit 9c76e12; where this differs it is said.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_runtime.strengths import PASSES, Strengths
from s3diff_training.families.family import Family, Loader, has_keys
from s3diff_training.families.plain_lora import PlainLoRA, PlainLoRAFile, frozen
from s3diff_training.families.plain_network import PlainNetwork
from s3diff_training.network.base import BaseModel, ResidualStep
from s3diff_training.network.lora import merge_lora
from s3diff_training.tensor_files import TensorFile

CHECKPOINT = "pisa_sr.pkl"
_TIMESTEP = 1
_NAMES = {1.0: "residual_both", 0.0: "residual_pixel"}
"""Of predictions, by how much of the semantic LoRA they have."""


class PiSASR(PlainNetwork):
    """Stable Diffusion 2.1 with two LoRA sets on the UNet: one step at timestep 1 under the empty prompt.

    The pixel set is folded into the UNet's weights. The semantic set is LoRA whose matrices C are the
    identity or zero: with both sets, or with the pixel set alone. See `PlainNetwork` for what differs from
    the released script.
    """

    family = "pisasr"
    prompts = ("",)
    brings_small_back = True
    one_step: ResidualStep

    def __init__(self, base: BaseModel, semantic: PlainLoRA) -> None:
        super().__init__(base)
        self.one_step, self.semantic_rank = ResidualStep(_TIMESTEP), semantic.rank
        self._semantic = semantic.add(self.unet)

    def predict_passes(
        self, latent: Tensor, prompts: Tensor, shares: Sequence[float], one_batch: bool = True
    ) -> list[Tensor]:
        """The residuals `[N, c, h, w]` with these shares of the semantic LoRA, in one batch or one by one."""
        if not one_batch:
            return [self.predict_passes(latent, prompts, [share])[0] for share in shares]
        rows = [switch(share, self.semantic_rank, latent) for share in shares]
        context = prompts.expand(len(latent), -1, -1).repeat(len(shares), 1, 1)
        with self._semantic.holding(torch.cat(rows)):
            return list(self.predict(latent.repeat(len(shares), 1, 1, 1), context).chunk(len(shares)))

    def step(
        self,
        latent: Tensor,
        prompts: Tensor,
        one_batch: bool,
        pixel: float = 1.0,
        semantic: float = 1.0,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One residual or two, and x0 with the strengths of both parts."""
        strengths = Strengths(pixel, semantic)
        shares = PASSES[strengths.passes]
        found = self.predict_passes(latent, prompts, shares, one_batch)
        residuals = {share: residual.float() for share, residual in zip(shares, found, strict=True)}
        taken = weighted(residuals, *strengths)
        return {_NAMES[share]: r for share, r in residuals.items()}, self.one_step.denoise(latent, taken)

    def probes(self, guided: bool = True) -> Mapping[str, Mapping[str, Any]]:
        """Each residual alone: with a semantic strength of 1 and of 0."""
        return {name: {"pixel_scale": [1.0], "semantic_scale": [share]} for share, name in _NAMES.items()}


def switch(share: float, rank: int, latent: Tensor) -> Tensor:
    """Matrices C `[N, 1, r, r]` that give every image of a latent that share of the semantic LoRA."""
    return (share * torch.eye(rank).to(latent)).expand(latent.shape[0], 1, -1, -1)


def weighted(residuals: Mapping[float, Tensor], pixel: float | Tensor, semantic: float | Tensor) -> Tensor:
    """`pixel p_pixel + semantic (p_both - p_pixel)`, `[N, c, h, w]`, of residuals by their semantic share.

    With one residual alone, of strengths for which the other counts nothing. Strengths are numbers, or of
    each image `[N, 1, 1, 1]`.
    """
    if 0.0 not in residuals:  # both strengths are equal
        return (pixel + semantic) / 2 * residuals[1.0]
    taken = (pixel - semantic) * residuals[0.0]
    return taken if 1.0 not in residuals else taken + semantic * residuals[1.0]


def _read(file: TensorFile, _: Path | None) -> Loader:
    parts = PlainLoRAFile(file, CHECKPOINT)
    pixel, semantic = (
        parts.lora(f"lora_rank_unet{suffix}", parts.unet_layers(suffix), "state_dict_unet", suffix)
        for suffix in ("_pix", "_sem")
    )
    if set(pixel.layers) != set(semantic.layers):
        raise CheckpointError(f"{file.path} has pixel and semantic LoRA on other layers; expected the same")

    def load(base: BaseModel) -> PiSASR:
        with torch.device("meta"):  # nothing that training made is ever left as it is initialised
            pixel.add(base.unet)
        pixel.fill(base.unet, what="the pixel LoRA")
        merge_lora(base.unet)
        with torch.device("meta"):
            network = PiSASR(base, semantic)
        semantic.fill(network.unet)
        return frozen(network)

    return load


FAMILY = Family(
    CHECKPOINT,
    has_keys("lora_rank_unet_pix", "lora_rank_unet_sem", "state_dict_unet"),
    _read,
)
