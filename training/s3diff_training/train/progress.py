"""What a person sees of a run: a progress bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG = logging.getLogger(__name__)
_PLAIN_INTERVAL = 30.0  # seconds


class TrainingProgress:
    """Shows step, steps per second, time left and the latest mean losses. A context manager."""

    def __init__(self, start: int, steps: int, shown: bool) -> None:
        """Begin at step `start` of `steps`; nothing at all is shown unless `shown` (the main process)."""
        self._start, self._steps, self._shown = start, steps, shown
        self._began = self._spoke = time.monotonic()
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
            self._task = self._bar.add_task("training", total=steps, completed=start, note="")

    def __enter__(self) -> TrainingProgress:
        """Start drawing."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing and leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

    def update(self, step: int, losses: dict[str, float]) -> None:
        """Show that `step` is done, and `losses`: the means over the steps since the last logged one."""
        if not self._shown:
            return
        now = time.monotonic()
        rate = (step - self._start) / max(now - self._began, 1e-9)
        note = "  ".join([f"{rate:.2f} steps/s", *(f"{name} {value:.4f}" for name, value in losses.items())])
        if self._bar:
            self._bar.update(self._task, completed=step, note=note)
        elif now - self._spoke >= _PLAIN_INTERVAL or step == self._steps:
            self._spoke = now
            left = (self._steps - step) / max(rate, 1e-9)
            _LOG.info("step %d of %d, %.0f min left, %s", step, self._steps, left / 60, note)
