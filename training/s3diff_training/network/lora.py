"""Degradation-guided LoRA layers (paper section 3.2.1, eq. 3) and their placement in a diffusers model."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from s3diff_runtime.errors import RequestError

T = TypeVar("T")


class Slot(Generic[T]):
    """Where the layers of one network find what the running call has for all of them; None if nothing."""

    def __init__(self) -> None:
        self.value: T | None = None

    @contextmanager
    def holding(self, value: T | None) -> Iterator[None]:
        """Hold `value` for the calls made inside the block."""
        self.value = value
        try:
            yield
        finally:
            self.value = None


class ModulationSlot(Slot[Tensor]):
    """Where LoRA layers find the matrices C of the running call.

    `value` is `[N, blocks, r, r]` (N may be 1 and broadcasts over the batch), or None for plain LoRA.
    """


class ModulatedLoRA(nn.Module):
    """A Linear or Conv2d with a low-rank update that a matrix C turns (eq. 3): `base(x) + s B(C^T A(x))`.

    For a convolution A carries the kernel, stride and padding, and B is 1x1. A starts Gaussian with
    standard deviation 1/r, B at zero (peft's "gaussian"), so a new layer computes what its base does.

    Args:
        base_layer: the layer to adapt; kept as it is, under this name.
        rank: r.
        scaling: s.
        block: index of this layer's C in the modulation.
        slot: where the modulation of the running call is found.
    """

    def __init__(
        self, base_layer: nn.Linear | nn.Conv2d, rank: int, scaling: float, block: int, slot: ModulationSlot
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scaling = scaling
        self.block = block
        self.slot = slot
        self.lora_A: nn.Linear | nn.Conv2d
        self.lora_B: nn.Linear | nn.Conv2d
        if isinstance(base_layer, nn.Conv2d):
            self.lora_A = nn.Conv2d(
                base_layer.in_channels,
                rank,
                base_layer.kernel_size,  # type: ignore[arg-type]
                base_layer.stride,  # type: ignore[arg-type]
                base_layer.padding,  # type: ignore[arg-type]
                bias=False,
            )
            self.lora_B = nn.Conv2d(rank, base_layer.out_channels, 1, bias=False)
        else:
            self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False)
            self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=1 / rank)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Eq. 3 on activations: `[N, C, H, W]` for a convolution, `[N, T, C]` for a linear layer."""
        down = self.lora_A(x)
        if self.slot.value is not None:
            modulation = self.slot.value[:, self.block].to(down.dtype)
            if isinstance(self.lora_A, nn.Conv2d):
                down = (modulation.transpose(1, 2) @ down.flatten(2)).unflatten(2, down.shape[2:])
            else:
                down = down @ modulation
        update: Tensor = self.lora_B(down)
        base: Tensor = self.base_layer(x)
        return base + self.scaling * update


def targeted_layers(model: nn.Module, targets: str | tuple[str, ...]) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of `model` that peft would adapt, by name; the arguments are `add_lora`'s."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {name: layers[name] for name in targeted_names(layers, targets)}


def targeted_names(names: Iterable[str], targets: str | tuple[str, ...]) -> list[str]:
    """Those of the names of layers that peft would adapt."""
    config = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets))
    return [name for name in names if check_target_module_exists(config, name)]


def add_lora(
    model: nn.Module,
    targets: str | tuple[str, ...],
    rank: int,
    alpha: float,
    block_of: Callable[[str], int],
) -> ModulationSlot:
    """Replace every targeted Linear and Conv2d of `model` by a `ModulatedLoRA`, in place; none for rank 0.

    Args:
        model: a diffusers UNet or VAE.
        targets: names as peft takes them: a tuple of suffixes or one regular expression.
        rank: rank of every update.
        alpha: over the rank, the factor of every update.
        block_of: index into the modulation for a layer's name.

    Returns:
        The slot that all the new layers share.

    Raises:
        RequestError: when nothing in the model matches.
    """
    slot = ModulationSlot()
    matched = targeted_layers(model, targets) if rank else {}
    if rank and not matched:
        raise RequestError(f"no layer of {type(model).__name__} matches the LoRA targets {targets}")
    for name, module in matched.items():
        model.set_submodule(name, ModulatedLoRA(module, rank, alpha / rank, block_of(name), slot))
    return slot


def lora_layers(model: nn.Module) -> dict[str, ModulatedLoRA]:
    """Every degradation-guided layer of `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ModulatedLoRA)}


def merged_weight(layer: ModulatedLoRA, modulation: Tensor | None) -> Tensor:
    """Eq. 3 on weights: `W + s B C^T A`, of the plain layer that computes the same, exactly.

    The products run in float64, so that merging adds no error of its own to a float32 weight. `modulation` is
    the layer's C, `[r, r]`, or None for plain LoRA; the result has the shape and dtype of its base's weight.
    """
    weight = layer.base_layer.weight
    a = layer.lora_A.weight.double().flatten(1)
    b = layer.lora_B.weight.double().flatten(1)
    if modulation is not None:
        a = modulation.double().T @ a
    return (weight.double() + layer.scaling * (b @ a).view_as(weight)).to(weight.dtype)


@torch.no_grad()
def merge_lora(model: nn.Module, modulation: Tensor | None = None) -> None:
    """Replace every layer with LoRA by its plain one, in place, of the weight that `merged_weight` gives.

    `modulation` is `[N, blocks, r, r]`, of which the first image counts, or None for plain LoRA.
    """
    for name, layer in lora_layers(model).items():
        plain, matrix = layer.base_layer, None if modulation is None else modulation[0, layer.block]
        plain.weight = nn.Parameter(merged_weight(layer, matrix), requires_grad=False)
        model.set_submodule(name, plain)


def unet_blocks(levels: int) -> tuple[int, Callable[[str], int]]:
    """Number of modulation blocks of a UNet with that many levels, and the block of a layer's name.

    Blocks are the down blocks, the middle, the up blocks, the rest: 10 for four levels.
    """

    def block_of(name: str) -> int:
        side, index = _side_and_index(name)
        return {"down": index, "mid": levels, "up": levels + 1 + index}.get(side, 2 * levels + 1)

    return 2 * levels + 2, block_of


def vae_blocks(levels: int, decoder: bool) -> tuple[int, Callable[[str], int]]:
    """Number of modulation blocks of a VAE with that many levels, and the block of a layer's name.

    The encoder's are its down blocks, middle, rest: 6 for four levels. With LoRA in the decoder too
    (Table 4) its middle, up blocks and rest follow.
    """

    def block_of(name: str) -> int:
        side, index = _side_and_index(name)
        if name.startswith("decoder."):
            return levels + 2 + {"mid": 0, "up": 1 + index}.get(side, levels + 1)
        return {"down": index, "mid": levels}.get(side, levels + 1)

    return (2 if decoder else 1) * (levels + 2), block_of


def _side_and_index(name: str) -> tuple[str, int]:
    match = re.search(r"\b(down|mid|up)_blocks?(?:\.(\d+))?", name)
    return (match[1], int(match[2] or 0)) if match else ("rest", 0)
