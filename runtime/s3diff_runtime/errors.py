"""What can go wrong, in every room; the command line turns each into one line and an exit code."""

from collections.abc import Iterable


class S3DiffError(Exception):
    """Base of all errors that are raised on purpose. `exit_code` is what the command line exits with."""

    exit_code = 1


class RequestError(S3DiffError):
    """The request cannot be met as it stands: a wrong option, picture, engine, device, file or folder."""

    exit_code = 2


class TooLarge(RequestError):
    """A picture with more pixels than the caller allowed."""


class BundleError(RequestError):
    """A bundle that is missing, damaged, altered, inconsistent, or newer than this version."""


class CheckpointError(RequestError):
    """A checkpoint or base model that cannot be read, or does not fit what it is loaded into."""


class JobError(S3DiffError):
    """The request was sound and the work failed: out of memory, a result that is not finite, a full disk."""


class BuildError(JobError):
    """An export that failed, a graph that TensorRT refuses, a gate of verification that does not hold."""


class OutOfMemory(JobError):
    """The device or the host has not the memory that the work needs; smaller tiles or batches need less."""


def is_refusal(error: BaseException | None) -> bool:
    """Whether the request for a picture is at fault, neither the bundle nor the work."""
    return isinstance(error, RequestError) and not isinstance(error, BundleError)


def one_line(message: str) -> str:
    """A message as a terminal may show it: in one line, and what file names hide in it spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def refuse(problems: Iterable[str], what: str = "") -> None:
    """Raise `RequestError` with all problems in one message, where there are any.

    Args:
        problems: each with what is wrong and what was expected.
        what: put in front, such as `wrong sizes for this bundle`.
    """
    found = "; ".join(problems)
    if found:
        raise RequestError(f"{what}: {found}" if what else found)
