"""The network that reads noise and blur off the low-resolution image (paper section 3.2.1; MM-RealSR's)."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from s3diff_runtime.vocabulary import AXES

_WIDTHS = (64, 64, 64, 128)
_STRIDES = (1, 1, 2, 1)
_RESIDUAL_BLOCKS = 2
_HIDDEN = 512
_FIRST_GAIN, _RESIDUAL_STD = 8.0, 0.02


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a ReLU, without normalisation, added to the input `[N, width, H, W]`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, width, H, W]` in and out."""
        return x + self.conv2(self.conv1(x).relu())


class DegradationEstimator(nn.Module):
    """One branch per degradation axis: residual stages, global average, two linear layers, sigmoid.

    The layer names and sizes are those of the released `de_net.pth`, 2.36 M parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = nn.ModuleList(_high_pass() for _ in AXES)
        self.body = nn.ModuleList(_body() for _ in AXES)
        self.fc_degree = nn.ModuleList(
            nn.Sequential(nn.Linear(_WIDTHS[-1], _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1), nn.Sigmoid())
            for _ in AXES
        )
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.normal_(module.conv2.weight, std=_RESIDUAL_STD)

    def forward(self, image: Tensor) -> Tensor:
        """Low-resolution image `[N, 3, H, W]` in [0, 1] to the degradation `[N, 2]` in [0, 1]."""
        with torch.autocast(image.device.type, enabled=False):  # bfloat16 has steps of half a grey level
            firsts = [first(image) for first in self.conv_first]
        branches = zip(firsts, self.body, self.fc_degree, strict=True)
        return torch.cat([fc(body(first).mean((2, 3))) for first, body, fc in branches], dim=1)


def _body() -> nn.Sequential:
    layers: list[nn.Module] = []
    for (width, following), stride in zip(pairwise((*_WIDTHS, _WIDTHS[-1])), _STRIDES, strict=True):
        layers += [ResidualBlock(width) for _ in range(_RESIDUAL_BLOCKS)]
        if stride > 1 or width != following:
            layers.append(nn.Conv2d(width, following, 3, stride, padding=1))
    return nn.Sequential(*layers)


@torch.no_grad()
def _high_pass() -> nn.Conv2d:
    """A first convolution that ignores flat colour and amplifies the rest.

    Noise and blur are differences of neighbouring pixels, a hundredth of the image's range, and without a
    norm training would first have to find them behind the colours.
    """
    conv = nn.Conv2d(3, _WIDTHS[0], 3, padding=1)
    conv.weight.sub_(conv.weight.mean((2, 3), keepdim=True)).mul_(_FIRST_GAIN)
    return conv
