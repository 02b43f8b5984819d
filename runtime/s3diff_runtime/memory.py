"""How much memory this process holds."""

import resource
from pathlib import Path
from typing import Literal


def process_memory(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process in memory, by Linux's names: now (`VmRSS`), or at most so far (`VmHWM`).

    Where the system does not tell, what `getrusage` has for the most, which includes the parent that this
    process was forked from.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    found = (int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))
    return next(found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
