"""What can go wrong in a benchmark."""

from __future__ import annotations


class BenchmarkRoomError(Exception):
    """Base of all errors of this room; the message is one line for the user."""

    exit_code = 1


class RequestError(BenchmarkRoomError):
    """A wrong request: options, files or folders that do not fit."""

    exit_code = 2


class JobError(BenchmarkRoomError):
    """A measurement that failed, or a regression that was to be an error."""
