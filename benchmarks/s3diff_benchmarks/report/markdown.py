"""A report as Markdown: readable as text, and in a repository's web view with its plots."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from s3diff_benchmarks.machine import Machine
from s3diff_benchmarks.report.figures import NOTHING, heading, rounded, shown_at, visible
from s3diff_benchmarks.report.model import BundleFacts, Picture, Report, Table

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#&!$~])")


def to_markdown(report: Report) -> str:
    """The whole report; plots and pictures are linked by their paths beside it."""
    return "\n\n".join(_blocks(report)) + "\n"


def moment(created: str) -> str:
    """An ISO time in UTC as people read it, to the minute."""
    return f"{created[:16].replace('T', ' ')} UTC"


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    """What a reader must know of a machine, as names and values."""
    facts = [
        ("processor", f"{machine.processor}; cores for this process: {machine.cores}"),
        ("memory", f"{rounded(machine.memory_mib / 1024)} GiB"),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("load before", f"{machine.load} programs running"),
    ]
    for gpu in machine.gpus:
        limit = "" if gpu.power_limit_w is None else f", {gpu.power_limit_w:.0f} W"
        clocks = f"{gpu.sm_clock_mhz} MHz, memory {gpu.memory_clock_mhz} MHz at the start"
        drivers = f"driver {gpu.driver}, CUDA {gpu.cuda}"
        facts.append(("GPU", f"{gpu.name}, {gpu.memory_mib / 1024:.0f} GiB, {clocks}{limit}, {drivers}"))
    facts.append(("packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())))
    return facts


def bundle_facts(bundle: BundleFacts) -> str:
    """One line on a bundle."""
    bins = f", {bundle.bins} bins" if bundle.bins else ""
    engines = f", engines {', '.join(bundle.engines)}" if bundle.engines else ""
    made = f"made by {bundle.producer}, manifest {bundle.manifest_sha256[:16]}"
    return f"{bundle.name}: {bundle.lora_mode}, {bundle.precision}{bins}{engines}; {made}"


def _blocks(report: Report) -> Iterator[str]:
    yield f"# {escaped(report.title)}"
    yield f"{moment(report.created)}, on {escaped(report.machine.name)}, in {rounded(report.seconds)} s."
    yield code_block(report.command)
    for table in report.tables:
        yield from table_blocks(table)
    for plot in report.plots:
        yield f"![{escaped(plot.title)}](plots/{plot.name}.png)"
    if report.pictures:
        yield "## Pictures"
        yield from map(_picture, report.pictures)
    if report.notes:
        yield "## Notes"
        yield _list(report.notes)
    yield "## How it was measured"
    yield _list(f"{name}: {value}" for name, value in machine_facts(report.machine))
    if report.bundles:
        yield _list(map(bundle_facts, report.bundles))
    yield code_block(json.dumps(report.options, indent=2, ensure_ascii=False))


def table_blocks(table: Table, level: int = 2) -> Iterator[str]:
    """A table under its title, a heading of that level, with its note."""
    yield f"{'#' * level} {escaped(table.title)}"
    places = visible(table)
    numeric = [any(isinstance(row[place], int | float) for row in table.rows) for place in places]
    lines = [
        _row(escaped(heading(table.columns[place])) for place in places),
        _row(("---:" if right else "---") for right in numeric),
    ]
    for row in table.rows:
        lines.append(_row(escaped(shown_at(table, row, place)) for place in places))
    yield "\n".join(lines if table.rows else [NOTHING])
    if table.note:
        yield escaped(table.note)


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _picture(picture: Picture) -> str:
    names = dict.fromkeys((picture.before, picture.after))
    images = " ".join(f"![{name}](pictures/{name}.png)" for name in names)
    return f"{escaped(picture.title)}\n\n{images}"


def _list(items: Iterator[str] | tuple[str, ...]) -> str:
    return "\n".join(f"- {escaped(item)}" for item in items)


def code_block(text: str) -> str:
    """A fenced block; its fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def escaped(text: str) -> str:
    """One line of plain text, whatever it holds."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
