"""What a person sees of a run: a progress bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG = logging.getLogger(__name__)
_PLAIN_INTERVAL = 30.0  # seconds


@contextmanager
def training_progress(start: int, steps: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Show step, steps per second, time left and the latest mean losses, from step `start` of `steps`.

    Yields a function to call when a step is done, with the means of the losses since the last logged ones.
    """
    console = Console(stderr=True)
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(
        *columns, TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal
    )
    task = bar.add_task("training", total=steps, completed=start, note="")
    began = spoke = time.monotonic()

    def done(step: int, losses: Mapping[str, float]) -> None:
        nonlocal spoke
        now = time.monotonic()
        rate = (step - start) / max(now - began, 1e-9)
        note = "  ".join([f"{rate:.2f} steps/s", *(f"{name} {value:.4f}" for name, value in losses.items())])
        bar.update(task, completed=step, note=note)
        if bar.disable and (now - spoke >= _PLAIN_INTERVAL or step == steps):
            spoke = now
            minutes = (steps - step) / max(rate, 1e-9) / 60
            _LOG.info("step %d of %d, %.0f min left, %s", step, steps, minutes, note)

    with bar:
        yield done
