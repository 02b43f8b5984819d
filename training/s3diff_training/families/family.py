"""What a family is to those who load weights."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s3diff_training.network.base import BaseModel
from s3diff_training.network.one_step_network import OneStepNetwork
from s3diff_training.tensor_files import TensorFile

Loader = Callable[[BaseModel], OneStepNetwork]
"""Adapts a base model; raises `CheckpointError` where the checkpoint does not fit it."""


@dataclass(frozen=True)
class Family:
    """How the checkpoints of a family are told from others, and read."""

    checkpoint: str
    """The name of the released file, for messages."""
    recognises: Callable[[TensorFile], bool]
    """Whether a file is certainly one of this family's."""
    read: Callable[[TensorFile, Path | None], Loader]
    """Checks a checkpoint and an estimator's file, and gives what adapts a base model with them.

    Raises `CheckpointError` for a file that is not whole. Families that read no degradation get no estimator.
    """


def has_keys(*keys: str) -> Callable[[TensorFile], bool]:
    """Recognises files that are a dictionary with all these keys."""
    return lambda file: file.metadata is None and file.content.keys() >= set(keys)
