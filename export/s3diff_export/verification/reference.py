"""What PyTorch computes in fp32, stage by stage: the truth that a bundle is verified against."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from s3diff_export.verification.cases import CheckCase
from s3diff_runtime.vocabulary import ColorFix
from s3diff_training.data import from_uint8
from s3diff_training.network.model import S3Diff

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Reference:
    """Inputs and outputs of every stage for one case, by the names of the tensors."""

    case: CheckCase
    tensors: dict[str, Array]
    """`image` uint8 `[1, H, W, 3]`; float32: `degradation` (the estimate), `applied` (what was used),
    `vae_modulation`, `unet_modulation`, `prompts`, `latent`, `epsilon_positive`, `x0`, `decoded`, and where
    the network is guided `epsilon_negative`; `tokens` int64; `upscaled_<fix>` uint8."""
    alpha_cumprod: float

    def epsilon_of(self, x0: Array) -> Array:
        """The ε behind an x0 `[1, c, h, w]` of this case's latent, in float64."""
        signal = math.sqrt(self.alpha_cumprod)
        noise = math.sqrt(1 - self.alpha_cumprod)
        latent, result = (np.asarray(value, np.float64) for value in (self.tensors["latent"], x0))
        return np.asarray((latent - signal * result) / noise)


@torch.no_grad()
def references(
    network: S3Diff, cases: Sequence[CheckCase], color_fixes: Sequence[ColorFix], guided: bool = True
) -> Iterator[Reference]:
    """Run every case in fp32, with the mode of the posterior and the checkpoint's prompts.

    `guided` is at the checkpoint's guidance; False takes the positive prompt alone, as a bundle without
    guidance does.
    """
    texts = [network.config.positive_prompt, network.config.negative_prompt]
    prompts = network.encode_prompts(texts)
    positive, negative = prompts[:1], prompts[1:]
    for case in cases:
        image = from_uint8(case.image)[None]
        restored = network.restore(
            image,
            noise=case.scores.get("noise"),
            blur=case.scores.get("blur"),
            guidance=None if guided else 1.0,
            color_fix="none",
            positive_prompt=positive,
            negative_prompt=negative,
        )
        found = restored.forward
        computed = {
            "degradation": network.degradation(image),
            "applied": restored.degradation,
            "vae_modulation": found.modulation.vae,
            "unet_modulation": found.modulation.unet,
            "tokens": network.tokenize(texts),
            "prompts": prompts,
            "latent": found.latent,
            "epsilon_positive": found.epsilon_positive,
            "epsilon_negative": found.epsilon_negative,
            "x0": found.x0,
            "decoded": found.decoded,
        }
        if guided and found.epsilon_negative is None:  # at a scale of 1, where the bundle takes any scale
            computed["epsilon_negative"] = network.predict_noise(found.latent, negative, found.modulation)
        for fix in color_fixes:
            levels = (network.finish(found.decoded, image, fix) * 255).round().to(torch.uint8)
            computed[f"upscaled_{fix}"] = levels.permute(0, 2, 3, 1)
        tensors = {name: tensor.numpy() for name, tensor in computed.items() if tensor is not None}
        yield Reference(case, {"image": case.image[None], **tensors}, network.one_step.alpha_cumprod)
