"""Checkpoints of plain LoRA in the layout of OSEDiff's training code, which others took over."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from s3diff_runtime.errors import CheckpointError
from s3diff_training.network.lora import ModulationSlot, add_lora, lora_layers
from s3diff_training.tensor_files import TensorFile, difference, first_few, reason

N = TypeVar("N", bound=nn.Module)
_ALPHA = 8.0
"""peft's default, which the released code never changes and the files do not hold: updates count 8 / rank."""
MOST_RANK = 1024
_UNET_PARTS = ("encoder", "decoder", "others")


@dataclass(frozen=True)
class PlainLoRA:
    """LoRA of one model, as a checkpoint has it."""

    rank: int
    layers: tuple[str, ...]
    """Full names."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Of these layers, and of others that were trained whole."""
    expected: str = ""
    """What belongs together, for messages."""

    def add(self, model: nn.Module) -> ModulationSlot:
        """Give the layers LoRA, as `add_lora`; raises `CheckpointError` where the model lacks some."""
        known = {name for name, each in model.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
        strange = sorted(set(self.layers) - known)
        if strange:
            raise CheckpointError(
                f"the base model's {type(model).__name__} lacks {len(strange)} layers that have LoRA "
                f"({first_few(strange)}); expected {self.expected}"
            )
        return add_lora(model, self.layers, self.rank, _ALPHA, lambda _: 0)

    def fill(self, model: nn.Module, others: Iterable[str] = (), what: str = "the checkpoint") -> None:
        """Give the LoRA layers of a model, and what else is named, exactly these tensors.

        Raises:
            CheckpointError: with counts of what is missing, unexpected and mis-shaped.
        """
        lora = (f"{layer}.lora_{side}.weight" for layer in lora_layers(model) for side in "AB")
        state = model.state_dict()
        differing = difference({name: state[name].shape for name in (*lora, *others)}, self.tensors)
        if differing:
            raise CheckpointError(
                f"{what} does not fit the base model: {differing}; expected {self.expected}"
            )
        model.load_state_dict(dict(self.tensors), strict=False, assign=True)


class PlainLoRAFile:
    """The parts of a checkpoint, each checked as it is asked for.

    Args:
        file: the checkpoint.
        name: of the released one, for messages.

    Raises:
        CheckpointError: from every method, for a part that is missing or of another kind.
    """

    def __init__(self, file: TensorFile, name: str) -> None:
        self.file, self.expected = file, f"the released {name}"

    def lora(self, rank: str, layers: tuple[str, ...], tensors: str, adapter: str = "") -> PlainLoRA:
        """The LoRA of these layers, whose rank and tensors have these keys; of adapters that end so."""
        expected = f"{self.expected} and Stable Diffusion 2.1-base"
        return PlainLoRA(self.rank(rank), layers, self.tensors(tensors, adapter), expected)

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
        # `<layer>.lora_A.<adapter>.weight`
        named = {
            name: tensor
            for name, tensor in self._part(key, Mapping).items()
            if not isinstance(name, str) or ".lora_" not in name or name.split(".")[-2].endswith(adapter)
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


def frozen(network: N) -> N:
    """A loaded network, set to evaluation, without gradients.

    Raises:
        TypeError: where a tensor was left without values, which is a mistake of the family's file.
    """
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise TypeError("a part of the network has no values")
    return network.eval().requires_grad_(False)
