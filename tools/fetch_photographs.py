"""Fetch the freely licensed photographs that the small model is trained and validated on.

    python tools/fetch_photographs.py photographs              # photographs/train and photographs/held-out
    python tools/fetch_photographs.py photographs --set train

The training photographs come out of Debian packages (so `apt-get` and `dpkg-deb` must exist; nothing is
installed); the six held-out ones, never trained on, ship inside scikit-image and scikit-learn.
`photographs.toml` beside this script names every file, its author, its licence and its sha256; a file that
differs is refused. Each set's folder also gets `SOURCES.json` and `SOURCES.md`, which must travel with the
photographs: most of the licences ask for the credit.
"""

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
from functools import partial
from pathlib import Path

import click
from PIL import Image

from s3diff_runtime.files import installed_file, replacing, write_text

TABLE = Path(__file__).with_name("photographs.toml")
SETS = ("train", "held-out")
# Above this many pixels a JPEG original is halved: full-size camera JPEGs are soft at the pixel level
# (demosaicing, noise reduction, compression), and a model trained on soft truth learns to be soft.
HALVE_ABOVE_PIXELS = 6_000_000
_SOURCE_HEADINGS = "| file | author | licence | package | change |"
_SOURCE_ROW = "| {file} | {author} | {licence} | {package} {version} | {change} |"


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


Original = tuple[Path | None, str]
"""The file that a package ships, and the package's version."""


def in_debian_packages(photographs: Sequence[Photograph], folder: Path) -> Iterator[Original]:
    """Download and unpack the packages under `folder`."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise click.ClickException(f"{tool} is missing: run this on Debian or Ubuntu")
    packages = sorted({photograph.package for photograph in photographs})
    download = ["apt-get", "download", *packages]
    if subprocess.run(download, cwd=folder, capture_output=True).returncode:
        subprocess.run(["apt-get", "update"], capture_output=True)  # a fresh machine has no package lists yet
        result = subprocess.run(download, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise click.ClickException(f"apt-get could not download {', '.join(packages)}: {reason}")
    versions = {}
    for package in packages:
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, folder / package], check=True)
        versions[package] = subprocess.check_output(["dpkg-deb", "-f", archive, "Version"], text=True).strip()
    for photograph in photographs:
        yield folder / photograph.package / photograph.path, versions[photograph.package]


def in_python_packages(photographs: Sequence[Photograph]) -> Iterator[Original]:
    """Find the photographs without importing what ships them."""
    for photograph in photographs:
        package = photograph.package
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise click.ClickException(f"{package} is not installed: pip install {package}") from error
        yield installed_file(photograph.module or "", photograph.path), version


def read_verified(photograph: Photograph, source: Path | None) -> bytes:
    """Return the original file's bytes, where it is the one whose licence was judged."""
    if source is None or not source.is_file():
        raise click.ClickException(f"{photograph.package} has no {photograph.path}")
    data = source.read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != photograph.sha256:
        problem = f"{photograph.path} has sha256 {found}, expected {photograph.sha256}"
        raise click.ClickException(f"{photograph.package}: {problem}")
    return data


def prepare(data: bytes, always_png: bool) -> tuple[bytes, str, str]:
    """Return what to store of a photograph, its suffix, and what was done to it.

    Large JPEG originals (see `HALVE_ABOVE_PIXELS`) are halved with Lanczos, grey ones become RGB; both are
    stored as PNG, so that nothing is compressed with loss a second time; all else passes untouched. With
    `always_png` nothing but the format changes, of every file: validation reads one format only.
    """
    with Image.open(io.BytesIO(data)) as image:
        large = image.format == "JPEG" and image.width * image.height > HALVE_ABOVE_PIXELS
        if not (always_png or large) and image.mode == "RGB":
            return data, ".jpg" if image.format == "JPEG" else ".png", "as shipped"
        rgb = image.convert("RGB")
    change = "stored as PNG" if always_png else "converted to RGB"
    if large and not always_png:
        rgb = rgb.resize((rgb.width // 2, rgb.height // 2), Image.Resampling.LANCZOS)
        change = "halved with Lanczos"
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG")
    return buffer.getvalue(), ".png", change


def sources_markdown(name: str, sources: Sequence[dict[str, str | None]]) -> str:
    """Return the table of credits of one set."""
    lines = [f"# Sources of the {name} photographs", "", _SOURCE_HEADINGS, "| --- | --- | --- | --- | --- |"]
    lines += [_SOURCE_ROW.format_map(row) for row in sources]
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
        with tempfile.TemporaryDirectory(prefix="photographs-") as folder:
            look = in_python_packages if held_out else partial(in_debian_packages, folder=Path(folder))
            for photograph, (source, version) in zip(photographs, look(photographs), strict=True):
                data, suffix, change = prepare(read_verified(photograph, source), always_png=held_out)
                file = photograph.name + suffix
                with replacing(out_dir / name / file) as temporary:
                    temporary.write_bytes(data)
                sources.append({"file": file, **asdict(photograph), "version": version, "change": change})
        write_text(out_dir / name / "SOURCES.json", json.dumps(sources, indent=2) + "\n")
        write_text(out_dir / name / "SOURCES.md", sources_markdown(name, sources))
        click.echo(f"{out_dir / name}: {len(photographs)} photographs")


if __name__ == "__main__":
    main()
