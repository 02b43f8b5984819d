"""The UNet of a family whose pixel and semantic strengths are inputs: a graph for each pass of `PASSES`."""

from collections.abc import Callable

import torch
from torch import Tensor

from s3diff_export.graphs import dynamic, merged
from s3diff_export.graphs.derive import LayerMaker
from s3diff_runtime.strengths import PASSES, PassName
from s3diff_training.families.pisasr import PiSASR, switch, weighted
from s3diff_training.network.lora import ModulationSlot


def pass_layers(network: PiSASR, name: PassName, slot: ModulationSlot, dtype: torch.dtype) -> LayerMaker:
    """Plain layers for one evaluation, with the semantic LoRA or without; branches for two in one batch."""
    shares = PASSES[name]
    if len(shares) > 1:
        return dynamic.make_layers(slot, dtype)
    with slot.holding(switch(shares[0], network.semantic_rank, torch.zeros(1))):
        return merged.make_layers(slot, dtype)


def x0_of_pass(
    network: PiSASR, name: PassName, slot: ModulationSlot, unet: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """What the stage computes: x0 `[N, c, h, w]` of `latent`, `pixel_scale` and `semantic_scale` `[N]`.

    And of `prompts` `[1, T, W]`, where they are not folded.
    """
    shares = PASSES[name]

    def compute(
        latent: Tensor, pixel_scale: Tensor, semantic_scale: Tensor, prompts: Tensor | None = None
    ) -> Tensor:
        switches = [switch(share, network.semantic_rank, latent) for share in shares]
        with slot.holding(torch.cat(switches) if len(shares) > 1 else None):
            found = unet(latent.repeat(len(shares), 1, 1, 1), prompts).float().chunk(len(shares))
        strengths = (scale.view(-1, 1, 1, 1) for scale in (pixel_scale, semantic_scale))
        taken = weighted(dict(zip(shares, found, strict=True)), *strengths)
        return network.one_step.denoise(latent, taken)

    return compute
