"""What can go wrong in the runtime; the command line turns each into one line and an exit code."""

from __future__ import annotations


class RuntimeRoomError(Exception):
    """Base of the room's errors. `exit_code` is what the command line exits with."""

    exit_code = 1


class RequestError(RuntimeRoomError):
    """The request cannot be met as it stands: a wrong option, image, engine, device or folder."""

    exit_code = 2


class BundleError(RequestError):
    """A bundle that is missing, damaged, altered, inconsistent, or newer than this runtime."""


class JobError(RuntimeRoomError):
    """The request was sound and the work failed: out of memory, a result that is not finite, a full disk."""


class OutOfMemory(JobError):
    """The device or the host has not the memory that the work needs; smaller tiles or batches need less."""
