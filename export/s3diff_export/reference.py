"""What PyTorch computes in fp32, stage by stage: the truth that a bundle is verified against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from s3diff_runtime.bundle.manifest import Bin
from s3diff_training.data import from_uint8
from s3diff_training.network import S3Diff
from s3diff_training.network.color import bicubic_upscale, correct_color
from s3diff_training.network.diffusion import guide

Array = NDArray[np.generic]


@dataclass(frozen=True)
class CheckCase:
    """One picture and the degradation to restore it with: scores in [0, 1], or the estimator's."""

    image: NDArray[np.uint8]
    """LR, `[H, W, 3]`."""
    degradation: tuple[float, float] | None
    """(noise, blur), or None for the estimate."""
    bin: str | None = None
    """The bin whose centre `degradation` is."""


@dataclass(frozen=True)
class Reference:
    """Inputs and outputs of every stage for one case, by the names of the stage graphs."""

    case: CheckCase
    tensors: dict[str, Array]
    """`image` uint8 `[1, H, W, 3]`; float32: `degradation` (the estimate), `applied` (what was used),
    `vae_modulation`, `unet_modulation`, `prompts`, `latent`, `epsilon_positive`, `epsilon_negative`, `x0`,
    `decoded`; `tokens` int64; `upscaled_<fix>` uint8."""
    alpha_cumprod: float

    def epsilon_of(self, x0: Array) -> Array:
        """The ε behind an x0 `[1, c, h, w]` of this case's latent, in float64."""
        signal = math.sqrt(self.alpha_cumprod)
        noise = math.sqrt(1 - self.alpha_cumprod)
        latent, result = (np.asarray(value, np.float64) for value in (self.tensors["latent"], x0))
        return np.asarray((latent - signal * result) / noise)


def check_cases(images: Sequence[NDArray[np.uint8]], bins: Sequence[Bin]) -> list[CheckCase]:
    """Every bin once, with the pictures in turn; without bins, every picture as estimated and at extremes."""
    if bins:
        return [
            CheckCase(images[index % len(images)], (bin.noise, bin.blur), bin.name)
            for index, bin in enumerate(bins)
        ]
    corners = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    return [CheckCase(image, None) for image in images] + [
        CheckCase(images[index % len(images)], corner) for index, corner in enumerate(corners)
    ]


@torch.no_grad()
def references(
    network: S3Diff, cases: Sequence[CheckCase], color_fixes: Sequence[str], guided: bool = True
) -> Iterator[Reference]:
    """Run every case in fp32, with the mode of the posterior and the checkpoint's prompts.

    Args:
        network: in evaluation mode.
        cases: what to restore.
        color_fixes: corrections to apply to each result.
        guided: at the checkpoint's guidance; False takes the positive prompt alone, as a bundle without
            guidance does.
    """
    texts = [network.config.positive_prompt, network.config.negative_prompt]
    prompts = network.encode_prompts(texts)
    for case in cases:
        image = from_uint8(case.image)[None]
        scores = (
            {} if case.degradation is None else dict(zip(("noise", "blur"), case.degradation, strict=True))
        )
        applied = network.degradation(image, **scores)
        modulation = network.modulation(applied)
        encoded = network.encode(network.prepare(image), modulation)
        positive, negative = network.predict_noise_pair(encoded.latent, prompts[:1], prompts[1:], modulation)
        scale = network.config.guidance if guided else 1.0
        epsilon = positive if scale == 1 else guide(positive, negative, scale)
        x0 = network.one_step.denoise(encoded.latent, epsilon)
        decoded = network.decode(x0, modulation, encoded.skips)
        height, width = (4 * side for side in image.shape[-2:])
        tensors = {
            "image": case.image[None],
            "degradation": network.degradation(image).numpy(),
            "applied": applied.numpy(),
            "tokens": network.tokenize(texts).numpy(),
            "prompts": prompts.numpy(),
            "latent": encoded.latent.numpy(),
            "epsilon_positive": positive.numpy(),
            "epsilon_negative": negative.numpy(),
            "x0": x0.numpy(),
            "decoded": decoded.numpy(),
        }
        for name, matrices in (("vae_modulation", modulation.vae), ("unet_modulation", modulation.unet)):
            if matrices is not None:
                tensors[name] = matrices.numpy()
        for number, skip in enumerate(encoded.skips):
            tensors[f"skip_{number}"] = skip.numpy()
        low = bicubic_upscale(image).clamp(0, 1)
        for fix in color_fixes:
            upscaled = correct_color((decoded[..., :height, :width] + 1) / 2, low, fix)  # type: ignore[arg-type]
            levels = (upscaled * 255).round().to(torch.uint8)
            tensors[f"upscaled_{fix}"] = levels.permute(0, 2, 3, 1).numpy()
        yield Reference(case, tensors, network.one_step.alpha_cumprod)
