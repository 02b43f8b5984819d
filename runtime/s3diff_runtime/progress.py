"""Shows how far a work is, live on a terminal, a plain line now and then elsewhere; and tables of results."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

Counted = Callable[[float, str], None]
"""Told what is done, of a total, and what is going on: `kind: detail`."""
Steps = Callable[[str], None]
"""Told what is going on: `step`, or `step: how far`."""

_PLAIN_INTERVAL = 10.0
"""Seconds between plain lines."""


@contextmanager
def counted(total: float | None, what: str) -> Iterator[Counted]:
    """A bar for work that counts; elsewhere a line where another kind of it begins, and every few seconds.

    Args:
        total: in any unit; None where the end is not known.
        what: is done, shown in front.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        spoken, last = -_PLAIN_INTERVAL, ""

        def tell(done: float, now: str) -> None:
            nonlocal spoken, last
            kind = now.partition(":")[0].partition(" ")[0]
            if monotonic() - spoken >= _PLAIN_INTERVAL or kind != last:
                spoken, last = monotonic(), kind
                share = f" {done / total:.0%}" if total else ""
                console.print(f"{what}{share} {now}", highlight=False, markup=False)

        yield tell
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


@contextmanager
def steps() -> Iterator[Steps]:
    """A line for work whose steps are few; elsewhere a step that only counts on is told once."""
    console = Console(stderr=True)
    if not console.is_terminal:
        last = ""

        def tell(step: str) -> None:
            nonlocal last
            name = step.partition(":")[0]
            if name and name != last:
                console.print(name, highlight=False)
            last = name

        yield tell
        return
    with console.status("starting") as status:
        yield lambda step: status.update(step)


def show_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console | None = None
) -> None:
    """Print rows of text under the names of the columns, if any; on standard error by default."""
    named = (Column(name, overflow="fold") for name in columns)
    table = Table(*named, title=escape(title), title_justify="left", show_header=any(columns))
    for row in rows:
        table.add_row(*map(escape, row))
    (console or Console(stderr=True)).print(table)
