"""Write the JSON Schemas of a bundle's manifest and of a benchmark's report into docs/.

    python tools/write_schema.py

To be run after every change of the manifest or of the report; a test fails while a
file is out of date.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import click
from pydantic import BaseModel

from s3diff_benchmarks.report.model import Report
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.files import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
SCHEMAS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {"manifest.schema.json": Manifest, "bench-report.schema.json": Report}
)


def schema(model: type[BaseModel]) -> str:
    """The text of a model's file."""
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=DOCS)
def main(folder: Path) -> None:
    """Write the files and print where they are."""
    for name, model in SCHEMAS.items():
        write_text(folder / name, schema(model))
        click.echo(folder / name)


if __name__ == "__main__":
    main()
