"""Checkpoints of plain LoRA in the layout of OSEDiff's training code, which others took over."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from s3diff_runtime.errors import CheckpointError
from s3diff_training.network.lora import lora_layers
from s3diff_training.tensor_files import TensorFile, difference, first_few, reason

ALPHA = 8.0
"""peft's default, which the released code never changes and the files do not hold: updates count 8 / rank."""
MOST_RANK = 1024
_UNET_PARTS = ("encoder", "decoder", "others")


class PlainLoRAFile:
    """The parts of a checkpoint, each checked as it is asked for.

    Raises:
        CheckpointError: from every method, for a part that is missing or of another kind.
    """

    def __init__(self, file: TensorFile, expected: str) -> None:
        self.file, self.expected = file, expected

    def rank(self, key: str) -> int:
        """A rank, from 1 to `MOST_RANK`."""
        value = self._part(key, int)
        if isinstance(value, bool) or not 1 <= value <= MOST_RANK:
            raise CheckpointError(f"{self.file.path}: {key} is {value!r}, expected from 1 to {MOST_RANK}")
        return int(value)

    def layers(self, key: str) -> tuple[str, ...]:
        """Full names of layers, each once."""
        names = self._part(key, list | tuple | set)
        if not all(isinstance(name, str) and name.isprintable() and 0 < len(name) < 200 for name in names):
            raise CheckpointError(f"{self.file.path}: {key} is no list of layers; expected {self.expected}")
        return tuple(dict.fromkeys(names))

    def unet_layers(self, suffix: str = "") -> tuple[str, ...]:
        """Of the UNet, of all three lists."""
        keys = (f"unet_lora_{part}_modules{suffix}" for part in _UNET_PARTS)
        return tuple(dict.fromkeys(name for key in keys for name in self.layers(key)))

    def tensors(self, key: str, adapter: str = "") -> dict[str, Tensor]:
        """Tensors by their layers' names, of adapters whose names end so; other parts than LoRA are kept."""
        named = {
            name: tensor
            for name, tensor in self._part(key, Mapping).items()
            if not isinstance(name, str) or ".lora_" not in name or _adapter(name).endswith(adapter)
        }
        try:
            return self.file.named_tensors(named)
        except TypeError as error:
            raise CheckpointError(f"{self.file.path}: {reason(error)}; expected {self.expected}") from error

    def _part(self, key: str, kind: Any) -> Any:  # noqa: ANN401 - of a file
        if key not in self.file.content:
            raise CheckpointError(f"{self.file.path} lacks {key}; expected {self.expected}")
        value = self.file.content[key]
        if not isinstance(value, kind):
            raise CheckpointError(
                f"{self.file.path}: {key} is a {type(value).__name__}; expected {self.expected}"
            )
        return value


def require_layers(model: nn.Module, names: Iterable[str], expected: str) -> None:
    """Raise `CheckpointError` for names that are no layers of a model which can have LoRA."""
    known = {name for name, each in model.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    strange = sorted(set(names) - known)
    if strange:
        raise CheckpointError(
            f"the base model's {type(model).__name__} lacks {len(strange)} layers that have LoRA "
            f"({first_few(strange)}); expected {expected}"
        )


def fill(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    others: Iterable[str],
    expected: str,
    what: str = "the checkpoint",
) -> None:
    """Give the LoRA layers of a model, and what else is named, exactly these tensors.

    Raises:
        CheckpointError: with counts of what is missing, unexpected and mis-shaped.
    """
    state, named = model.state_dict(), set(others)
    wanted = {name: state[name].shape for name in (*_lora_tensors(model), *named)}
    differing = difference(wanted, tensors)
    if differing:
        raise CheckpointError(f"{what} does not fit the base model: {differing}; expected {expected}")
    model.load_state_dict(dict(tensors), strict=False, assign=True)


def frozen_network(network: nn.Module) -> None:
    """Set a loaded network to evaluation, without gradients.

    Raises:
        TypeError: where a tensor was left without values, which is a mistake of the family's file.
    """
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise TypeError("a part of the network has no values")
    network.eval().requires_grad_(False)


def _lora_tensors(model: nn.Module) -> Iterator[str]:
    for layer in lora_layers(model):
        yield from (f"{layer}.lora_{side}.weight" for side in "AB")


def _adapter(name: str) -> str:
    """Name of the adapter in `<layer>.lora_A.<adapter>.weight`."""
    return name.split(".")[-2]
