"""Shows how far a measurement is: a bar on a terminal, a line now and then elsewhere; on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[float, str], None]

_PLAIN_INTERVAL = 10.0
"""Seconds between plain lines."""


@contextmanager
def progress(total: float | None, what: str) -> Iterator[Report]:
    """Yield a function to call with what is done, out of `total`, and what is going on.

    Args:
        total: in any unit; None where the end is not known.
        what: is measured, shown in front.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(console, total, what)
        return
    texts = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*texts, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total, now="", markup=False)
        yield lambda done, now: bar.update(task, completed=done, now=now)


def _plain(console: Console, total: float | None, what: str) -> Report:
    """Tells every kind of work when it begins, and again every few seconds."""
    spoken, kind = -_PLAIN_INTERVAL, ""

    def tell(done: float, now: str) -> None:
        nonlocal spoken, kind
        begun = now.partition(":")[0]
        if monotonic() - spoken < _PLAIN_INTERVAL and begun.split(" ")[0] == kind:
            return
        spoken, kind = monotonic(), begun.split(" ")[0]
        share = f" {done / total:.0%}" if total else ""
        console.print(f"{what}{share} {now}", highlight=False, markup=False)

    return tell
