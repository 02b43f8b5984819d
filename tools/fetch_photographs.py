"""Fetch the freely licensed photographs that the small model is trained and validated on.

    python tools/fetch_photographs.py photographs              # photographs/train and photographs/held-out
    python tools/fetch_photographs.py photographs --set train

The training photographs come out of Debian packages (so `apt-get` and `dpkg-deb` must exist; nothing is
installed); the six held-out ones, never trained on, ship inside scikit-image and scikit-learn.
`photographs.toml` beside this script names every file, its author, its licence and its sha256; a file that
differs is refused. Each set's folder also gets `SOURCES.json` and `SOURCES.md`, which must travel with the
photographs: most of the licences ask for the credit.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import click
from PIL import Image

from s3diff_runtime.files import installed_file, replacing, write_text

TABLE = Path(__file__).with_name("photographs.toml")
SETS = ("train", "held-out")
# Above this many pixels a JPEG original is halved: full-size camera JPEGs are soft at the pixel level
# (demosaicing, noise reduction, compression), and a model trained on soft truth learns to be soft.
HALVE_ABOVE_PIXELS = 8_000_000


@dataclass(frozen=True)
class Photograph:
    """One row of `photographs.toml`; `path` is inside the Debian package, or inside `module` where set."""

    name: str
    package: str
    path: str
    author: str
    licence: str
    sha256: str
    module: str | None = None


class Original(NamedTuple):
    """The file that a package ships, and the package's version."""

    path: Path | None
    version: str


class Prepared(NamedTuple):
    """A file as it is stored, and what was done to it."""

    data: bytes
    suffix: str
    change: str


def in_debian_packages(photographs: Sequence[Photograph], folder: Path) -> Iterator[Original]:
    """Download and unpack the packages under `folder`.

    Raises:
        click.ClickException: a tool is missing or a package cannot be had.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise click.ClickException(f"{tool} is missing: run this on Debian or Ubuntu")
    packages = sorted({photograph.package for photograph in photographs})
    _download(packages, folder)
    versions = {}
    for package in packages:
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
        field = subprocess.run(["dpkg-deb", "-f", archive, "Version"], check=True, capture_output=True)
        versions[package] = field.stdout.decode().strip()
    for photograph in photographs:
        yield Original(folder / photograph.package / photograph.path, versions[photograph.package])


def _download(packages: list[str], folder: Path) -> None:
    command = ["apt-get", "download", *packages]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:  # a fresh machine has no package lists yet
        subprocess.run(["apt-get", "update"], capture_output=True)
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise click.ClickException(f"apt-get could not download {', '.join(packages)}: {reason}")


def in_python_packages(photographs: Sequence[Photograph]) -> Iterator[Original]:
    """Find the photographs without importing what ships them.

    Raises:
        click.ClickException: a package is not installed.
    """
    for photograph in photographs:
        try:
            version = importlib.metadata.version(photograph.package)
        except importlib.metadata.PackageNotFoundError as error:
            package = photograph.package
            raise click.ClickException(f"{package} is not installed: pip install {package}") from error
        yield Original(installed_file(photograph.module or "", photograph.path), version)


def read_verified(photograph: Photograph, source: Path | None) -> bytes:
    """Return the original file's bytes.

    Raises:
        click.ClickException: the file is missing, or is not the one whose licence was judged.
    """
    if source is None or not source.is_file():
        raise click.ClickException(f"{photograph.package} has no {photograph.path}")
    data = source.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != photograph.sha256:
        raise click.ClickException(
            f"{photograph.package}: {photograph.path} has sha256 {found}, expected {photograph.sha256}"
        )
    return data


def prepare(data: bytes, always_png: bool) -> Prepared:
    """What to store of a photograph; RGB files pass untouched where possible.

    Large JPEG originals (see `HALVE_ABOVE_PIXELS`) are halved with Lanczos, grey ones become RGB; both are
    stored as PNG, so that nothing is compressed with loss a second time. With `always_png` nothing else is
    done than that, to every file: validation reads one format only.
    """
    with Image.open(io.BytesIO(data)) as image:
        large = image.format == "JPEG" and image.width * image.height > HALVE_ABOVE_PIXELS
        if not (always_png or large) and image.mode == "RGB":
            return Prepared(data, ".jpg" if image.format == "JPEG" else ".png", "as shipped")
        rgb = image.convert("RGB")
    change = "stored as PNG" if always_png else "converted to RGB"
    if large and not always_png:
        rgb = rgb.resize((rgb.width // 2, rgb.height // 2), Image.Resampling.LANCZOS)
        change = "halved with Lanczos"
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG")
    return Prepared(buffer.getvalue(), ".png", change)


def sources_markdown(name: str, sources: Sequence[dict[str, str | None]]) -> str:
    """Return the table of credits of one set."""
    lines = [f"# Sources of the {name} photographs", "", "| file | author | licence | package | change |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for row in sources:
        package = f"{row['package']} {row['version']}"
        lines.append(f"| {row['file']} | {row['author']} | {row['licence']} | {package} | {row['change']} |")
    return "\n".join(lines) + "\n"


@click.command(help=__doc__)
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--set", "sets", multiple=True, type=click.Choice(SETS), help="Only this set (default: both).")
def main(out_dir: Path, sets: tuple[str, ...]) -> None:
    """Write the photographs of each set, and their sources, under OUT_DIR."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    for name in sets or SETS:
        photographs, sources = [Photograph(**row) for row in table[name]], []
        held_out = name == "held-out"
        with tempfile.TemporaryDirectory(prefix="photographs-") as temporary:
            found = (
                in_python_packages(photographs)
                if held_out
                else in_debian_packages(photographs, Path(temporary))
            )
            for photograph, (source, version) in zip(photographs, found, strict=True):
                data, suffix, change = prepare(read_verified(photograph, source), always_png=held_out)
                file = photograph.name + suffix
                with replacing(out_dir / name / file) as partial:
                    partial.write_bytes(data)
                sources.append({"file": file, **asdict(photograph), "version": version, "change": change})
        write_text(out_dir / name / "SOURCES.json", json.dumps(sources, indent=2) + "\n")
        write_text(out_dir / name / "SOURCES.md", sources_markdown(name, sources))
        click.echo(f"{out_dir / name}: {len(photographs)} photographs")


if __name__ == "__main__":
    main()
