"""How much memory a process holds."""

import resource
from pathlib import Path
from typing import Literal


def process_memory(which: Literal["VmRSS", "VmHWM"], process: int | None = None) -> int:
    """Bytes of a process in memory, by Linux's names: now (`VmRSS`), or at most so far (`VmHWM`).

    0 of one that has ended. Of this one, where the system does not tell, what `getrusage` has for the most,
    which includes the parent that it was forked from.
    """
    try:
        lines = Path(f"/proc/{process or 'self'}/status").read_text("ascii", "replace").splitlines()
    except OSError:
        lines = []
    told = (int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))
    untold = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if process is None else 0
    return next(told, untold)
