"""Shows what a command is doing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

Progress = Callable[[str], None]


@contextmanager
def live_progress() -> Iterator[Progress]:
    """A line on standard error for every step: live on a terminal, plain elsewhere.

    Elsewhere a step that only counts on, by a percentage after a colon, is told once.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Plain(console)
        return
    with console.status("starting") as status:
        yield lambda step: status.update(step)


class _Plain:
    """Prints steps, and of those that differ only behind a colon the first."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""

    def __call__(self, step: str) -> None:
        name = step.partition(":")[0]
        if name and name != self._last:
            self._console.print(name, highlight=False)
        self._last = name
