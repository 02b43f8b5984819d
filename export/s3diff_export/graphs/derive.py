"""A module's twin with other layers and another dtype, that shares every tensor it can with the original.

The original is never changed, so stages of a full-size network are derived one after the other without a
second copy of the weights, and the network itself still serves as the truth to verify against.
"""

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor, nn

from s3diff_training.network.lora import ModulatedLoRA

LayerMaker = Callable[[ModulatedLoRA], nn.Module]
"""Makes the layer that takes the place of a degradation-guided one; called with the original."""


def derive(module: nn.Module, dtype: torch.dtype, make_layer: LayerMaker) -> nn.Module:
    """The twin of `module`, with another layer in the place of every `ModulatedLoRA`.

    `dtype` is that of its floating-point parameters and buffers; the same dtype shares them.
    """
    if isinstance(module, ModulatedLoRA):
        return make_layer(module)
    twin = shallow(module)
    for name, parameter in module._parameters.items():
        twin._parameters[name] = None if parameter is None else frozen(parameter, dtype)
    for name, buffer in module._buffers.items():
        floating = buffer is not None and buffer.is_floating_point()
        twin._buffers[name] = buffer.to(dtype) if buffer is not None and floating else buffer
    for name, child in module._modules.items():
        twin._modules[name] = None if child is None else derive(child, dtype, make_layer)
    return twin


def shallow(module: nn.Module) -> nn.Module:
    """The same module with dictionaries of its own (parts, hooks), so that they can be exchanged."""
    twin: nn.Module = object.__new__(type(module))
    for name, value in module.__dict__.items():
        twin.__dict__[name] = copy(value) if isinstance(value, dict) else value
    return twin


def frozen(tensor: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """The tensor as a parameter of that dtype, without a gradient; the same dtype shares the memory.

    Kernels of fp16 convolutions lie with their channels last: on a CPU, where stages are traced, PyTorch runs
    them 20 times faster so (the full-size encoder's trace takes 6 s instead of 150). Their values and
    what is written are the same.
    """
    value = tensor.detach().to(dtype)
    if dtype == torch.float16 and value.ndim == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(value, requires_grad=False)
