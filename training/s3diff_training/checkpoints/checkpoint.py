"""What a checkpoint is, whatever its format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_training.network import NetworkConfig

_NAMED = 3
"""How many tensors of a kind an error names."""


@dataclass(frozen=True)
class Checkpoint:
    """LoRA, modulation, trained `conv_in`, estimator and configuration, free of any base model."""

    config: NetworkConfig
    tensors: Mapping[str, Tensor]
    """By name in `S3Diff.state_dict()`: `unet.<layer>.lora_A.weight`, `modulation.…`, `estimator.…`."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Free text on where it comes from: command, data, base model, steps."""


def require_whole(tensors: Mapping[str, Tensor]) -> None:
    """Refuse to write an incomplete or broken checkpoint.

    Args:
        tensors: by their names in `S3Diff.state_dict()`, of the types that they will have on disk.

    Raises:
        CheckpointError: when a value is not finite, or there is no estimator.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        types = ", ".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in broken}))
        raise CheckpointError(
            f"{len(broken)} tensors are not finite as {types} ({first_few(broken)}); nothing was written"
        )
    if not any(name.startswith("estimator.") for name in tensors):
        raise CheckpointError("there is no estimator to write; pass the released de_net.pth with --estimator")


def first_few(names: Sequence[str]) -> str:
    """The first few of many names, for an error message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
