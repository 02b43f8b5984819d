"""Write the JSON Schemas of a bundle's manifest and of a benchmark's report into docs/.

    python tools/write_schema.py

To be run after every change of the manifest or of the report; a test fails while a
file is out of date.
"""

import json
from pathlib import Path

import click

from s3diff_benchmarks.report.model import Report
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.files import write_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
DRAFT = "https://json-schema.org/draft/2020-12/schema"


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=DOCS)
def main(folder: Path) -> None:
    """Write the files and print where they are."""
    for name, model in (("manifest", Manifest), ("bench-report", Report)):
        path, schema = folder / f"{name}.schema.json", {"$schema": DRAFT, **model.model_json_schema()}
        write_text(path, json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
        click.echo(path)


if __name__ == "__main__":
    main()
