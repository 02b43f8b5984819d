"""LoRA mode `dynamic`: branches on every activation, so that a batch may mix degradations."""

import torch
from torch import nn

from s3diff_export.graphs.derive import LayerMaker, derive, shallow
from s3diff_training.network.lora import ModulatedLoRA, ModulationSlot


def make_layers(slot: ModulationSlot, dtype: torch.dtype) -> LayerMaker:
    """Makes the network's own LoRA layers (eq. 3) in another dtype, reading from another slot.

    The slot holds `[N, blocks, r, r]` on each call, N being the batch of the activations.
    """

    def make(layer: ModulatedLoRA) -> nn.Module:
        twin = shallow(layer)
        for name, child in layer.named_children():
            twin._modules[name] = derive(child, dtype, make)
        twin.__dict__["slot"] = slot
        return twin

    return make
