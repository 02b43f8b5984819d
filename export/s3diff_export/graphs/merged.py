"""LoRA mode `merged`: every update folded into its layer's weight, for one modulation."""

import torch
from torch import nn

from s3diff_export.graphs.derive import LayerMaker, frozen, shallow
from s3diff_training.network.lora import ModulatedLoRA, ModulationSlot, merged_weight


def make_layers(slot: ModulationSlot, dtype: torch.dtype) -> LayerMaker:
    """Makes plain layers of `W + s B C^T A` (eq. 3), computed in float64.

    C is what the slot holds now, `[1, blocks, r, r]`; nothing for LoRA without modulation.
    """
    modulation = slot.value

    def make(layer: ModulatedLoRA) -> nn.Module:
        plain = shallow(layer.base_layer)
        matrix = None if modulation is None else modulation[0, layer.block]
        plain._parameters["weight"] = frozen(merged_weight(layer, matrix), dtype)
        bias = layer.base_layer.bias
        plain._parameters["bias"] = None if bias is None else frozen(bias, dtype)
        return plain

    return make
