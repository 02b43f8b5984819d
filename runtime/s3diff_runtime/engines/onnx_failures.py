"""What ONNX Runtime's errors mean; it has one kind for all of them."""

import re

from s3diff_runtime.errors import JobError, OutOfMemory

_NO_MEMORY = re.compile(
    r"out of memory|failed to allocate memory|smaller than requested bytes|bad[ _]alloc|ALLOC_FAILED",
    re.IGNORECASE,
)
"""What ONNX Runtime and the CUDA libraries below it say when memory runs out."""


def failure(what: str, error: Exception) -> JobError:
    """The error to raise for one of ONNX Runtime's, which `what` introduces."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return OutOfMemory(f"{what} for want of memory ({line(error)}); smaller tiles or batches need less")
    return JobError(f"{what} ({line(error)}); where memory ran out, a smaller tile or batch needs less")


def line(error: Exception) -> str:
    """Its words in one line."""
    return " ".join(str(error).split())[:400]
