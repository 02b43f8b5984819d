"""What all tests share: the reference data, one thread per core, the same random numbers."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Set before anything imports torch or numpy. More threads than cores slow every test down.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of the shared reference data; skip the test where there is none."""
    beside_the_clone = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("S3DIFF_SHARED", beside_the_clone))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; S3DIFF_SHARED can name another folder")
    return folder


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    torch = sys.modules.get("torch")  # never the test run's reason to load it
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_handler_of_ended_children() -> Iterator[None]:
    """Take back the handler that a `DataLoader` with workers leaves in its process.

    With it, the end of any child is delivered on the signal stack of the main thread, and where a library
    that is loaded later has spoilt that stack, the kernel kills the process.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if before is not None and signal.getsignal(signal.SIGCHLD) != before:
        signal.signal(signal.SIGCHLD, before)
