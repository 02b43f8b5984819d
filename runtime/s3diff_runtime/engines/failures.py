"""What the errors of ONNX Runtime and of OpenVINO mean; each has one kind for all of them."""

import re

from s3diff_runtime.errors import JobError, OutOfMemory

_NO_MEMORY = re.compile(
    r"out of memory|bad[ _]alloc|ALLOC_FAILED|smaller than requested bytes"
    r"|(failed|could not|cannot) (to )?allocate",
    re.IGNORECASE,
)
"""What they, and the libraries below them, say when memory runs out."""
_LONGEST = 400


def failure(what: str, error: Exception) -> JobError:
    """The error to raise for one of theirs, which `what` introduces."""
    if is_want_of_memory(error):
        return OutOfMemory(f"{what} for want of memory ({line(error)}); smaller tiles or batches need less")
    return JobError(f"{what} ({line(error)}); where memory ran out, a smaller tile or batch needs less")


def is_want_of_memory(error: Exception) -> bool:
    """Whether memory ran out."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


def line(error: Exception) -> str:
    """Its words in one line, without the places in OpenVINO's sources that come before them."""
    lines = [line for line in str(error).splitlines() if not line.startswith("Exception from ")]
    return " ".join(" ".join(lines).split())[:_LONGEST]
