"""What a checkpoint is, and our format of it: one `.safetensors` file, its configuration in the metadata."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_runtime.files import replacing
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import S3Diff

FORMAT = "s3diff-checkpoint"
REVISION = 1
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


def read_native(path: Path) -> Checkpoint:
    """Read our format.

    Raises:
        CheckpointError: when the file is damaged, of a newer revision or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or no safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not an S3Diff checkpoint; expected metadata format={FORMAT}")
    try:
        revision = int(metadata["revision"])
        if revision > REVISION:
            raise CheckpointError(
                f"{path} has format revision {revision}, this version reads up to {REVISION}; "
                "update s3diff-export"
            )
        config = NetworkConfig.from_dict(json.loads(metadata["config"]))
        provenance = json.loads(metadata.get("provenance", "{}"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the metadata of {path} is damaged ({error}); expected a revision and a JSON configuration"
        ) from error
    return Checkpoint(config, tensors, provenance)


def write_checkpoint(checkpoint: Checkpoint, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write one `.safetensors` file, whole or not at all.

    Args:
        checkpoint: what to write.
        path: the file; an existing one is replaced.
        dtype: type on disk; float16 halves the file and is read back as float32. The Fourier frequencies
            stay in float32: rounding them would move every phase.

    Raises:
        CheckpointError: when a value is not finite or does not fit `dtype`, or there is no estimator.
    """
    tensors = {
        name: tensor.detach().cpu().to(torch.float32 if name.endswith("frequencies") else dtype).contiguous()
        for name, tensor in checkpoint.tensors.items()
    }
    require_whole(tensors)
    metadata = {
        "format": FORMAT,
        "revision": str(REVISION),
        "config": json.dumps(asdict(checkpoint.config)),
        "provenance": json.dumps(dict(checkpoint.provenance)),
    }
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def capture(network: S3Diff, provenance: Mapping[str, str] | None = None) -> Checkpoint:
    """The checkpoint of a network: what training changes, and its estimator."""
    tensors = {name: tensor.detach().clone() for name, tensor in _stored_state(network).items()}
    return Checkpoint(network.config, tensors, dict(provenance or {}))


def build_network(base: BaseModel, checkpoint: Checkpoint) -> S3Diff:
    """The network of a base model and a checkpoint, in evaluation mode on the CPU, float32.

    Raises:
        CheckpointError: when they do not fit; counts every missing, unexpected and mis-shaped tensor and
            names the first few.
    """
    network = S3Diff(base, checkpoint.config)
    wanted = {name: tensor.shape for name, tensor in _stored_state(network).items()}
    given = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    misshaped = [
        f"{name} {list(given[name])} for {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    faults = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "mis-shaped": misshaped,
    }
    if any(faults.values()):
        listed = "; ".join(
            f"{len(names)} {kind} ({_first_few(names)})" for kind, names in faults.items() if names
        )
        lacks_estimator = not any(name.startswith("estimator.") for name in given)
        hint = (
            "; the released estimator is a file of its own: pass de_net.pth"
            if lacks_estimator
            else "; expected a checkpoint trained on this base model"
        )
        raise CheckpointError(f"the checkpoint does not fit the base model: {listed}{hint}")
    network.load_state_dict(dict(checkpoint.tensors), strict=False)
    return network.eval().requires_grad_(False)


def _stored_state(network: S3Diff) -> dict[str, Tensor]:
    """What a checkpoint holds of a network's state."""
    own = network.trainable_names()
    state = network.state_dict()
    return {name: t for name, t in state.items() if name in own or name.startswith("estimator.")}


def require_whole(tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` when a value is not finite in its type on disk, or there is no estimator."""
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        types = ", ".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in broken}))
        raise CheckpointError(
            f"{len(broken)} tensors are not finite as {types} ({_first_few(broken)}); nothing was written"
        )
    if not any(name.startswith("estimator.") for name in tensors):
        raise CheckpointError("there is no estimator to write; pass the released de_net.pth with --estimator")


def _first_few(names: Sequence[str]) -> str:
    """The first few of many names, for an error message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
