"""The published JSON Schema of the manifest is that of the code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from s3diff_runtime.bundle.manifest import Manifest

REPOSITORY = Path(__file__).resolve().parents[2]
SCHEMA = REPOSITORY / "docs" / "manifest.schema.json"
WRITER = REPOSITORY / "tools" / "write_schema.py"


def test_the_published_schema_is_up_to_date() -> None:
    published = json.loads(SCHEMA.read_text(encoding="utf-8"))
    dialect = published.pop("$schema")
    assert dialect == "https://json-schema.org/draft/2020-12/schema"
    assert published == Manifest.model_json_schema(), "run python tools/write_schema.py"


def test_the_tool_writes_what_is_published(tmp_path: Path) -> None:
    subprocess.run([sys.executable, WRITER, tmp_path], check=True, capture_output=True)
    assert (tmp_path / SCHEMA.name).read_bytes() == SCHEMA.read_bytes()
