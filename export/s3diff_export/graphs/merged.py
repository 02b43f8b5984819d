"""LoRA mode `merged`: every update folded into its layer's weight, for one modulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s3diff_export.graphs.derive import LayerMaker, frozen, shallow
from s3diff_training.network import ModulatedLoRA, merged_weight


def merging(modulation: Tensor | None, dtype: torch.dtype) -> LayerMaker:
    """Makes plain layers of `W + s B C^T A` (eq. 3), computed in float64.

    Args:
        modulation: `[blocks, r, r]`, or None for LoRA without modulation.
        dtype: of the result.
    """

    def make(layer: ModulatedLoRA) -> nn.Module:
        plain = shallow(layer.base_layer)
        matrix = None if modulation is None else modulation[layer.block]
        plain._parameters["weight"] = frozen(merged_weight(layer, matrix), dtype)
        bias = layer.base_layer.bias
        plain._parameters["bias"] = None if bias is None else frozen(bias, dtype)
        return plain

    return make
