"""What can go wrong, in every room; the command line turns each into one line and an exit code."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

_FEW = 3
"""Of many things, how many a message spells out."""


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


def first_few(items: Sequence[str], separator: str = ", ") -> str:
    """The first three of many, and how many more there are."""
    more = [f"and {len(items) - _FEW} more"] if len(items) > _FEW else []
    return separator.join([*items[:_FEW], *more])


def wrong_fields(error: ValidationError) -> list[str]:
    """What pydantic found wrong, each as `where: what` in one line."""
    found = []
    for problem in error.errors(include_url=False, include_context=False):
        where = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ")
        found.append(" ".join((f"{where}: {what}" if where else what).split()))
    return found


def refuse(problems: Iterable[str], what: str = "", *, few: bool = False) -> None:
    """Raise `RequestError` with the problems in one message, where there are any.

    Args:
        problems: each with what is wrong and what was expected.
        what: put in front, such as `wrong sizes for this bundle`.
        few: whether the `first_few` will do, where there may be thousands.
    """
    found = list(problems)
    if found:
        told = first_few(found, "; ") if few else "; ".join(found)
        raise RequestError(f"{what}: {told}" if what else told)
