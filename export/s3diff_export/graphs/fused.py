"""LoRA mode `fused`: the graph itself computes each layer's weight from the modulation, once per call."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3diff_export.graphs.derive import LayerMaker, frozen
from s3diff_training.network.lora import ModulatedLoRA, ModulationSlot


class FusedLoRA(nn.Module):
    """A Linear or Conv2d with the weight `W + s B (C^T A)` (eq. 3); C is one for the whole batch.

    The update is computed in float32 (float64 for float64 layers) and added in the layer's dtype: it is one
    pass over the weights, and in fp16 its rounding would otherwise add to that of the weight.

    Args:
        layer: whose tensors are taken over.
        slot: holds the modulation `[1, blocks, r, r]` on each call.
        dtype: of weight and activations.
    """

    def __init__(self, layer: ModulatedLoRA, slot: ModulationSlot, dtype: torch.dtype) -> None:
        super().__init__()
        base = layer.base_layer
        self.weight = frozen(base.weight, dtype)
        self.bias = None if base.bias is None else frozen(base.bias, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        self.down = frozen(layer.lora_A.weight.flatten(1), wide)
        self.up = frozen(layer.scaling * layer.lora_B.weight.flatten(1), wide)
        self.block, self.slot = layer.block, slot
        self.convolution: dict[str, Any] | None = (
            {"stride": base.stride, "padding": base.padding} if isinstance(base, nn.Conv2d) else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` for a convolution, `[N, T, C]` for a linear layer."""
        if self.slot.value is None:
            raise ValueError("a fused layer ran without a modulation")
        turned = self.slot.value[0, self.block].transpose(0, 1) @ self.down
        weight = self.weight + (self.up @ turned).view(self.weight.shape).to(self.weight.dtype)
        if self.convolution is None:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, **self.convolution)


def make_layers(slot: ModulationSlot, dtype: torch.dtype) -> LayerMaker:
    """Makes layers that compute their own weights, reading from `slot`, which holds `[1, blocks, r, r]`."""
    return lambda layer: FusedLoRA(layer, slot, dtype)
