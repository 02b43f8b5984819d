"""One `.safetensors` file with everything that training made, and its configuration in the metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from s3diff_runtime.errors import CheckpointError
from s3diff_runtime.files import replacing
from s3diff_training.checkpoints.checkpoint import Checkpoint, require_consistent, require_whole
from s3diff_training.checkpoints.released import read_estimator, released_checkpoint
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig, is_text
from s3diff_training.network.model import S3Diff
from s3diff_training.tensor_files import TensorFile, difference, open_tensor_file, refusing

FORMAT = "s3diff-checkpoint"
REVISION = 1


def read_checkpoint(path: Path, estimator: Path | None = None) -> Checkpoint:
    """Read our format or the released one, told apart by content; whole, checked, or not at all.

    Args:
        path: a `.safetensors` checkpoint, or the released `s3diff.pkl`.
        estimator: the released `de_net.pth`; replaces the checkpoint's own estimator, if it has one.

    Raises:
        CheckpointError: when the file is missing, damaged, inconsistent, of a newer revision or of neither
            format.
    """
    return checkpoint_of(open_tensor_file(path), estimator)


def checkpoint_of(file: TensorFile, estimator: Path | None = None) -> Checkpoint:
    """`read_checkpoint` of a file that is open."""
    checkpoint = released_checkpoint(file) if file.metadata is None else _native(file, file.metadata)
    checkpoint = require_consistent(checkpoint, str(file.path))
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
    with torch.device("meta"):  # nothing that training made is ever left as it is initialised
        network = S3Diff(base, checkpoint.config)
    wanted = {name: tensor.shape for name, tensor in _stored_state(network).items()}
    differing = difference(wanted, checkpoint.tensors)
    if differing:
        lacks_estimator = not any(name.startswith("estimator.") for name in checkpoint.tensors)
        hint = (
            "; the released estimator is a file of its own: pass de_net.pth"
            if lacks_estimator
            else "; expected a checkpoint trained on this base model"
        )
        raise CheckpointError(f"the checkpoint does not fit the base model: {differing}{hint}")
    own = {name: tensor.detach().float().clone() for name, tensor in checkpoint.tensors.items()}
    network.load_state_dict(own, strict=False, assign=True)
    return network.eval().requires_grad_(False)


def _stored_state(network: S3Diff) -> dict[str, Tensor]:
    """What a checkpoint holds of a network's state."""
    own = network.trainable_names()
    state = network.state_dict()
    return {name: t for name, t in state.items() if name in own or name.startswith("estimator.")}


def _native(file: TensorFile, metadata: Mapping[str, str]) -> Checkpoint:
    path = file.path
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not an S3Diff checkpoint; expected metadata format={FORMAT}, which a program that "
            "saves the file anew may lose"
        )
    with refusing(path, f"the metadata of {path} is damaged", "a revision and a JSON configuration"):
        revision = int(metadata["revision"])
        if revision > REVISION:
            raise CheckpointError(
                f"{path} has format revision {revision}, this version reads up to {REVISION}; "
                "update s3diff-export"
            )
        config = NetworkConfig.from_dict(json.loads(metadata["config"]))
        provenance = json.loads(metadata.get("provenance", "{}"))
        if not isinstance(provenance, dict) or not all(map(is_text, provenance.values())):
            raise TypeError("provenance is no dictionary of texts")
    return Checkpoint(config, file.named_tensors(), provenance)
