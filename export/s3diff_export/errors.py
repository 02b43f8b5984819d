"""What can go wrong in the export room; the command line turns each into one line and an exit code."""

from __future__ import annotations


class ExportRoomError(Exception):
    """Base of the room's errors. `exit_code` is what the command line exits with."""

    exit_code = 1


class RequestError(ExportRoomError):
    """The request cannot be met: a wrong option, weights that no graph can hold, an output in the way."""

    exit_code = 2


class BuildError(ExportRoomError):
    """The request was sound and the work failed: an export, a check of a graph, a gate of verification."""
