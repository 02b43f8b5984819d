"""What can go wrong in the training room; the command line turns each into one line and an exit code."""

from __future__ import annotations


class TrainingRoomError(Exception):
    """Base of the room's errors. `exit_code` is what the command line exits with."""

    exit_code = 1


class RequestError(TrainingRoomError):
    """The request cannot be met as it stands: a wrong option, file, folder or combination of them."""

    exit_code = 2


class CheckpointError(RequestError):
    """A checkpoint or base model that cannot be read, or does not fit what it is loaded into."""


class JobError(TrainingRoomError):
    """The request was sound and the work failed: a loss that is not finite, a disk that filled up."""
