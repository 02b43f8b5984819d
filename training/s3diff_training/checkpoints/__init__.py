"""Checkpoints: our one-file format, the released formats, and fitting either to a base model."""

from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import build_network, capture, read_checkpoint, write_checkpoint
from s3diff_training.checkpoints.released import (
    load_estimator,
    write_estimator,
    write_released,
)

__all__ = [
    "Checkpoint",
    "build_network",
    "capture",
    "load_estimator",
    "read_checkpoint",
    "write_checkpoint",
    "write_estimator",
    "write_released",
]
