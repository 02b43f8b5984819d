"""DISTS, the distance of structure and texture of Ding et al. 2020, from weights that are on this machine.

Source: "Image Quality Assessment: Unifying Structure and Texture Similarity". VGG16, in which a
Hanning-weighted root mean square takes the place of max pooling, describes both images at six depths, the
image itself being the first; means (texture) and covariances (structure) of every channel are compared and
weighted. VGG16 comes from the weights of LPIPS, which are the same network, and the channels' weights from
the package dists-pytorch (MIT), which is read without importing it.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.errors import CheckpointError, RequestError
from s3diff_runtime.files import installed_file
from s3diff_training.losses.lpips import LPIPS
from s3diff_training.tensor_files import open_tensor_file

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STAGES = ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
"""Convolutions of VGG16 between poolings."""
_WIDTHS = (3, 64, 128, 256, 512, 512)
_STABLE = 1e-6
INSTALL = "pip install --no-deps dists-pytorch"


class DISTS(nn.Module):
    """DISTS of image pairs; frozen.

    Args:
        vgg: LPIPS of VGG16, whose convolutions are used.
        alpha: weights of the means, one for each of 1475 channels.
        beta: of the covariances, likewise.
        weights_id: says where the weights came from.
    """

    mean: Tensor
    deviation: Tensor
    pooling: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, vgg: LPIPS, alpha: Tensor, beta: Tensor, weights_id: str) -> None:
        super().__init__()
        self.convs = vgg.convs
        self.weights_id = f"{weights_id}; VGG16 of {vgg.weights_id}"
        total = alpha.sum() + beta.sum()
        weights = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1))
        self.register_buffer("pooling", weights.outer(weights).view(1, 1, 3, 3))
        self.register_buffer("alpha", alpha.flatten() / total)
        self.register_buffer("beta", beta.flatten() / total)
        self.requires_grad_(False)

    @classmethod
    def load(cls, vgg: LPIPS, weights: Path | None = None) -> Self:
        """DISTS with its published weights, on LPIPS's VGG16.

        `weights` is the authors' `weights.pt`; None looks into the installed package dists-pytorch.

        Raises:
            RequestError: if there is no such file, or it does not hold `alpha` and `beta`.
        """
        path = weights or installed_file("DISTS_pytorch", "weights.pt")
        if path is None:
            raise RequestError(
                f"no weights of DISTS on this machine: {INSTALL}, or name a file (--dists-weights)"
            )
        try:
            state = open_tensor_file(path).named_tensors()
            alpha, beta = (state[name] for name in ("alpha", "beta"))
        except (CheckpointError, KeyError) as error:
            raise RequestError(f"{path} holds no weights of DISTS; expected those of `{INSTALL}`") from error
        if alpha.numel() != sum(_WIDTHS) or beta.numel() != sum(_WIDTHS):
            raise RequestError(
                f"{path} has {alpha.numel()} and {beta.numel()} weights, not {sum(_WIDTHS)} each"
            )
        return cls(vgg, alpha, beta, f"sha256 {sha256(path)[:12]}")

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each pair: `x`, `y` [N, 3, H, W] in [0, 1] -> [N], 0 for equal images."""
        similarity = x.new_zeros(len(x))
        weights = self.alpha.split(_WIDTHS), self.beta.split(_WIDTHS)
        for a, b, alpha, beta in zip(self._features(x), self._features(y), *weights, strict=True):
            mean_a, mean_b = a.mean((2, 3)), b.mean((2, 3))
            variance_a, variance_b = a.var((2, 3), correction=0), b.var((2, 3), correction=0)
            covariance = (a * b).mean((2, 3)) - mean_a * mean_b
            texture = (2 * mean_a * mean_b + _STABLE) / (mean_a**2 + mean_b**2 + _STABLE)
            structure = (2 * covariance + _STABLE) / (variance_a + variance_b + _STABLE)
            similarity = similarity + texture @ alpha + structure @ beta
        return 1 - similarity

    def _features(self, image: Tensor) -> list[Tensor]:
        tapped, features = [image], (image - self.mean) / self.deviation
        for stage, convs in enumerate(_STAGES):
            if stage:
                kernel = self.pooling.expand(features.shape[1], 1, 3, 3)
                squares = functional.conv2d(features**2, kernel, stride=2, padding=1, groups=len(kernel))
                features = (squares + 1e-12).sqrt()
            for place in convs:
                features = functional.relu(self.convs[place](features))
            tapped.append(features)
        return tapped
