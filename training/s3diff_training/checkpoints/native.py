"""One `.safetensors` file with everything that training made, and its configuration in the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_runtime.files import replacing
from s3diff_training.checkpoints.checkpoint import Checkpoint, first_few, require_whole
from s3diff_training.checkpoints.released import read_estimator, read_released
from s3diff_training.network import BaseModel, NetworkConfig, S3Diff

FORMAT = "s3diff-checkpoint"
REVISION = 1


def read_checkpoint(path: Path, estimator: Path | None = None) -> Checkpoint:
    """Read our format or the released one, told apart by content.

    Args:
        path: a `.safetensors` checkpoint, or the released `s3diff.pkl`.
        estimator: the released `de_net.pth`; replaces the checkpoint's own estimator, if it has one.

    Raises:
        CheckpointError: when the file is missing, damaged, of a newer revision or of neither format.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; expected a .safetensors or s3diff.pkl file")
    checkpoint = _read_native(path) if path.suffix == ".safetensors" else read_released(path)
    if estimator is None:
        return checkpoint
    kept = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("estimator.")}
    return replace(checkpoint, tensors=kept | read_estimator(estimator))


def write_checkpoint(checkpoint: Checkpoint, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write one `.safetensors` file, whole or not at all.

    Args:
        checkpoint: what to write.
        path: the file; an existing one is replaced.
        dtype: type on disk; float16 halves the file and is read back as float32. The Fourier frequencies
            stay in float32: rounding them would move every phase.

    Raises:
        CheckpointError: when a value is not finite or does not fit `dtype`, or there is no estimator.
        JobError: when the disk refuses.
    """
    tensors = {
        name: tensor.detach().cpu().to(torch.float32 if name.endswith("frequencies") else dtype).contiguous()
        for name, tensor in checkpoint.tensors.items()
    }
    require_whole(tensors)
    metadata = {
        "format": FORMAT,
        "revision": str(REVISION),
        "config": json.dumps(checkpoint.config.to_dict()),
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
            f"{len(names)} {kind} ({first_few(names)})" for kind, names in faults.items() if names
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


def _read_native(path: Path) -> Checkpoint:
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
