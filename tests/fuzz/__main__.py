"""Fuzz what the product reads: every mutated file must end in a result or in an error of ours.

    python -m tests.fuzz --minutes 5                       # all kinds in turn
    python -m tests.fuzz --kind picture --count 20000 --seed 7

A worker reads the files; one that dies, hangs, or raises anything else is a finding: its file is kept in
fuzz-findings/ and can be read again with --again FILE. tests/fuzz/corpus/ has small files that were found.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import click
from tests.fuzz.running import fuzz, read_again
from tests.fuzz.targets import TARGETS

ROUND = 500
"""Files of one kind before the next kind's turn."""


@click.command(help=__doc__)
@click.option("--kind", "kinds", type=click.Choice(list(TARGETS)), multiple=True, help="[default: all]")
@click.option("--minutes", type=float, help="Stop after so long.")
@click.option("--count", type=int, help="Stop after so many files of each kind.")
@click.option("--seed", default=0, show_default=True)
@click.option("--findings", type=click.Path(path_type=Path), default=Path("fuzz-findings"), show_default=True)
@click.option(
    "--again", type=click.Path(path_type=Path), help="Read one file of --kind, and say what happens."
)
def main(
    kinds: tuple[str, ...],
    minutes: float | None,
    count: int | None,
    seed: int,
    findings: Path,
    again: Path | None,
) -> None:
    """Run the rounds."""
    if again is not None:
        click.echo(read_again(kinds[0], again))
        return
    if minutes is None and count is None:
        raise click.UsageError("pass --minutes or --count")
    end = time.monotonic() + (minutes * 60 if minutes else 10**9)
    total = {kind: Counter[str]() for kind in kinds or TARGETS}
    first = 0
    while time.monotonic() < end and (count is None or first < count):
        size = ROUND if count is None else min(ROUND, count - first)
        for kind, counts in total.items():
            counts.update(fuzz(kind, seed, first, size, findings))
            shown = ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))
            click.echo(f"{kind}: {first + size} files, {shown}", err=True)
        first += size
    sys.exit(1 if any(counts["finding"] for counts in total.values()) else 0)


if __name__ == "__main__":
    main()
