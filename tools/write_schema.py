"""Write the JSON Schema of a bundle's manifest, docs/manifest.schema.json.

    python tools/write_schema.py

To be run after every change of `s3diff_runtime.manifest`; a test fails while the file is out of date.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from s3diff_runtime.files import replacing
from s3diff_runtime.manifest import Manifest

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "manifest.schema.json"


def manifest_schema() -> str:
    """The text of the file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


@click.command(help=__doc__)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), default=SCHEMA)
def main(path: Path) -> None:
    """Write the file and print where it is."""
    with replacing(path) as temporary:
        temporary.write_text(manifest_schema(), encoding="utf-8")
    click.echo(path)


if __name__ == "__main__":
    main()
