"""LoRA mode `fused`: a stage of its own computes the layers' weights, once for each degradation."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3diff_export.graphs.derive import LayerMaker, frozen
from s3diff_training.network.lora import ModulatedLoRA, Slot


class LayerWeights(nn.Module):
    """The weights `W + s B (C^T A)` (eq. 3) of layers, which one C for each block turns.

    Everything is computed in one dtype: the rounding of the update is small beside that of the weight.

    Args:
        layers: whose weights are given, in their order.
        scales: factors of some of the weights.
        dtype: of the weights.
    """

    def __init__(
        self, layers: Sequence[ModulatedLoRA], scales: Mapping[ModulatedLoRA, float], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype, self.blocks = dtype, [layer.block for layer in layers]
        self.bases, self.downs, self.ups = (nn.ParameterList() for _ in range(3))
        for layer in layers:
            weight, scale = layer.base_layer.weight, scales.get(layer, 1.0)
            self.bases.append(frozen(weight if scale == 1 else weight * scale, dtype))
            self.downs.append(frozen(layer.lora_A.weight.flatten(1), dtype))
            self.ups.append(frozen(scale * layer.scaling * layer.lora_B.weight.flatten(1), dtype))

    def forward(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """The weight of every layer of `[1, blocks, r, r]`."""
        turned = modulation[0].transpose(1, 2).to(self.dtype)
        layers = zip(self.bases, self.downs, self.ups, self.blocks, strict=True)
        return tuple(
            base + (up @ (turned[block] @ down)).view(base.shape) for base, down, up, block in layers
        )


class GivenWeight(nn.Module):
    """A Linear or Conv2d that finds its weight in a slot.

    Args:
        layer: in whose place it is.
        slot: holds the weights of each call by name.
        name: of the layer's weight.
        dtype: of weight and activations.
    """

    def __init__(
        self, layer: ModulatedLoRA, slot: Slot[Mapping[str, Tensor]], name: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        base = layer.base_layer
        self.bias = None if base.bias is None else frozen(base.bias, dtype)
        self.slot, self.name, self.width = slot, name, int(base.weight.shape[0])
        self.convolution: dict[str, Any] | None = (
            {"stride": base.stride, "padding": base.padding} if isinstance(base, nn.Conv2d) else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` for a convolution, `[N, T, C]` for a linear layer."""
        if self.slot.value is None:
            raise ValueError("a fused layer ran without its weight")
        weight = self.slot.value[self.name]
        if self.convolution is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, **self.convolution)


def make_layers(
    slot: Slot[Mapping[str, Tensor]], names: Mapping[ModulatedLoRA, str], dtype: torch.dtype
) -> LayerMaker:
    """Makes layers that find their weights in `slot`, each by its name."""
    return lambda layer: GivenWeight(layer, slot, names[layer], dtype)
