"""The published JSON Schema of a report is that of the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.reports import report, table

from s3diff_benchmarks.report.model import Report

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = REPOSITORY / "docs" / "bench-report.schema.json"
WRITER = REPOSITORY / "tools" / "write_schema.py"


def test_the_published_schema_is_up_to_date() -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert published.pop("$schema") == "https://json-schema.org/draft/2020-12/schema"
    assert published == Report.model_json_schema(), "run python tools/write_schema.py"


def test_the_tool_writes_what_is_published(tmp_path: Path) -> None:
    subprocess.run([sys.executable, WRITER, tmp_path], check=True, capture_output=True)
    assert (tmp_path / SCHEMA.name).read_bytes() == SCHEMA.read_bytes()


def test_a_report_has_the_fields_that_the_schema_asks_for() -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    written = json.loads(report(table(("a", 1.0, 0.9, 1.1, 1.2, 3))).model_dump_json())
    assert set(written) == set(published["properties"])
    assert set(published["required"]) <= set(written)
