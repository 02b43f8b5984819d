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
import importlib.util
import io
import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from PIL import Image

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


def read_table(table: Path = TABLE) -> dict[str, list[Photograph]]:
    """Return the photographs of each set, in the table's order."""
    rows = tomllib.loads(table.read_text(encoding="utf-8"))
    return {name: [Photograph(**row) for row in rows[name]] for name in SETS}


def unpack_debian_packages(packages: list[str], folder: Path) -> dict[str, tuple[Path, str]]:
    """Download and unpack Debian packages under `folder`; return each one's root folder and version.

    Raises:
        click.ClickException: a tool is missing or a package cannot be had.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise click.ClickException(f"{tool} is missing: run this on Debian or Ubuntu")
    _download(packages, folder)
    roots: dict[str, tuple[Path, str]] = {}
    for package in packages:
        archive = next(folder.glob(f"{package}_*.deb"))
        root = folder / package
        subprocess.run(["dpkg-deb", "-x", archive, root], check=True)
        version = subprocess.run(
            ["dpkg-deb", "-f", archive, "Version"], check=True, capture_output=True, text=True
        ).stdout.strip()
        roots[package] = (root, version)
    return roots


def _download(packages: list[str], folder: Path) -> None:
    command = ["apt-get", "download", *packages]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:  # a fresh machine has no package lists yet
        subprocess.run(["apt-get", "update"], capture_output=True)
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise click.ClickException(f"apt-get could not download {', '.join(packages)}: {reason}")


def locate_module_packages(photographs: list[Photograph]) -> dict[str, tuple[Path, str]]:
    """Return the folder and version of each Python package that ships photographs, without importing it.

    Raises:
        click.ClickException: a package is not installed.
    """
    roots: dict[str, tuple[Path, str]] = {}
    for package, module in {(photo.package, photo.module or "") for photo in photographs}:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise click.ClickException(f"{package} is not installed: pip install {package}")
        roots[package] = (Path(spec.origin).parent, importlib.metadata.version(package))
    return roots


def read_verified(photograph: Photograph, root: Path) -> bytes:
    """Return the original file's bytes.

    Raises:
        click.ClickException: the file is missing, or is not the one whose licence was judged.
    """
    source = root / photograph.path
    if not source.is_file():
        raise click.ClickException(f"{photograph.package} has no {photograph.path}")
    data = source.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != photograph.sha256:
        raise click.ClickException(
            f"{photograph.package}: {photograph.path} has sha256 {found}, expected {photograph.sha256}"
        )
    return data


def prepare(data: bytes) -> tuple[bytes, str, str]:
    """Return the bytes to store, their suffix and what was done; RGB files pass untouched where possible.

    Large JPEG originals (see `HALVE_ABOVE_PIXELS`) are halved with Lanczos, grey ones become RGB; both are
    stored as PNG, so that nothing is compressed with loss a second time.
    """
    with Image.open(io.BytesIO(data)) as image:
        large = image.format == "JPEG" and image.width * image.height > HALVE_ABOVE_PIXELS
        if not large and image.mode == "RGB":
            return data, ".jpg" if image.format == "JPEG" else ".png", "as shipped"
        rgb = image.convert("RGB")
    change = "converted to RGB"
    if large:
        rgb = rgb.resize((rgb.width // 2, rgb.height // 2), Image.Resampling.LANCZOS)
        change = "halved with Lanczos"
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG")
    return buffer.getvalue(), ".png", change


def as_png(data: bytes) -> tuple[bytes, str, str]:
    """Return `prepare`'s triple for an image re-stored as PNG: validation reads one format only."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue(), ".png", "stored as PNG"


def write_atomically(target: Path, data: bytes) -> None:
    """Write a file under a temporary name beside `target`, then rename it."""
    partial = target.with_name(target.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, target)


def fetch_set(
    name: str, photographs: list[Photograph], roots: Mapping[str, tuple[Path, str]], out_dir: Path
) -> None:
    """Write one set's photographs and their sources under `out_dir/name`."""
    folder = out_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    sources: list[dict[str, str | None]] = []
    for photograph in photographs:
        root, version = roots[photograph.package]
        original = read_verified(photograph, root)
        data, suffix, change = prepare(original) if name == "train" else as_png(original)
        write_atomically(folder / (photograph.name + suffix), data)
        sources.append(
            {"file": photograph.name + suffix, **asdict(photograph), "version": version, "change": change}
        )
    write_atomically(folder / "SOURCES.json", (json.dumps(sources, indent=2) + "\n").encode())
    write_atomically(folder / "SOURCES.md", sources_markdown(name, sources).encode())


def sources_markdown(name: str, sources: list[dict[str, str | None]]) -> str:
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
    """Write the photographs under OUT_DIR."""
    table = read_table()
    for name in sets or SETS:
        with tempfile.TemporaryDirectory(prefix="photographs-") as temporary:
            if name == "train":
                packages = sorted({photograph.package for photograph in table[name]})
                roots = unpack_debian_packages(packages, Path(temporary))
            else:
                roots = locate_module_packages(table[name])
            fetch_set(name, table[name], roots, out_dir)
        click.echo(f"{out_dir / name}: {len(table[name])} photographs")


if __name__ == "__main__":
    main()
