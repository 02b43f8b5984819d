"""Checkpoints: our one-file format, the released formats, and fitting either to a base model."""

from dataclasses import replace
from pathlib import Path

from s3diff_runtime.errors import CheckpointError
from s3diff_training.checkpoints.native import Checkpoint, read_native
from s3diff_training.checkpoints.released import read_estimator, read_released


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
    checkpoint = read_native(path) if path.suffix == ".safetensors" else read_released(path)
    if estimator is None:
        return checkpoint
    kept = {name: t for name, t in checkpoint.tensors.items() if not name.startswith("estimator.")}
    return replace(checkpoint, tensors=kept | read_estimator(estimator))
