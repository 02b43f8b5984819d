"""Keeps the residual stream of a network in training where float16 can hold it."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"(?:encoder\.|decoder\.)?(?:mid_block|(?:down|up)_blocks\.\d+)")
_LIMIT = 8.0
"""Root mean square of a block's output that is left alone. The largest values are some 30 times that, and
float16 ends at 65,504."""


class ResidualStream:
    """Measures what leaves the blocks of a UNet or a VAE, in every forward pass.

    All that reads the stream is a norm, so its scale changes nothing and no loss holds it; every sampler
    multiplies it by what its weights drift to, and over thousands of steps it grows by orders of magnitude.

    Args:
        networks: of diffusers, with `down_blocks`, `mid_block` and `up_blocks`, in them or in their parts.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._measured: list[Tensor] = []
        for network in networks:
            for name, module in network.named_modules():
                if _BLOCK.fullmatch(name):
                    module.register_forward_hook(self._measure)

    def excess(self) -> Tensor:
        """Mean over the blocks of how far each is above the limit, as the logarithm; 0 where none is."""
        measured, self._measured = self._measured, []
        return torch.stack(measured).div(_LIMIT**2).log().relu().mean()

    def _measure(self, module: nn.Module, _given: object, output: Tensor | tuple[Tensor, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            stream = output if isinstance(output, Tensor) else output[0]
            self._measured.append(stream.float().square().mean())
