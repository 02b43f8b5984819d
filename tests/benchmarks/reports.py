"""Small reports for tests."""

from __future__ import annotations

from typing import Any

from s3diff_benchmarks.machine import Machine
from s3diff_benchmarks.report.model import BundleFacts, Cell, Column, Report, Table

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)> | `$\\frac{` _x_ ~~'
"""A name that breaks out of whatever does not escape it."""

MACHINE = Machine(
    processor="Test CPU",
    cores=2,
    memory_mib=4096,
    system="Linux",
    python="3.11.9",
    load=0.1,
    packages={"numpy": "2.4.0"},
)
COLUMNS = (
    Column(name="what"),
    Column(name="median", unit="s", better="lower"),
    Column(name="low", unit="s"),
    Column(name="high", unit="s"),
    Column(name="p99", unit="s", better="lower"),
    Column(name="peak", unit="MiB", better="lower"),
)


def table(*rows: tuple[Cell, ...], name: str = "latency", columns: tuple[Column, ...] = COLUMNS) -> Table:
    return Table(name=name, title="Seconds for one call", columns=columns, rows=rows, note="Taken in rounds.")


def report(*tables: Table, **changes: Any) -> Report:  # noqa: ANN401
    fields: dict[str, Any] = {
        "kind": "latency",
        "title": "Latency",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "s3diff-export bench latency demo.bundle",
        "options": {"size": [128]},
        "bundles": (
            BundleFacts(
                name="demo.bundle",
                manifest_sha256="ab" * 32,
                producer="s3diff-export 0.1.0",
                lora_mode="dynamic",
                precision="fp16",
                bins=0,
                engines=(),
            ),
        ),
        "machine": MACHINE,
        "seconds": 12.3,
        "tables": tables,
    }
    return Report(**{**fields, **changes})
