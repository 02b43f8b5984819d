"""Subcommands of the runtime: they read the command line, and `upscaling` and `inspection` do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from s3diff_runtime.batch.upscaling import UpscaleRequest, run_upscale
from s3diff_runtime.bundle.inspection import show_manifest
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.pictures.formats import FORMATS, QUALITY
from s3diff_runtime.pictures.photograph import MAX_PIXELS
from s3diff_runtime.vocabulary import ColorFix

_PATH = click.Path(path_type=Path)
_SCORE = click.FloatRange(0, 1)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--output", type=_PATH, required=True, help="Folder for the results; a file for one INPUT."
)
@click.option(
    "--bundle", type=_PATH, envvar="S3DIFF_BUNDLE", help="Made by s3diff-export build. [env: S3DIFF_BUNDLE]"
)
@click.option("--format", type=click.Choice(list(FORMATS)), help="Of the results; as the input by default.")
@click.option(
    "--quality", type=click.IntRange(1, 100), default=QUALITY, show_default=True, help="Of JPEG and WebP."
)
@click.option(
    "--noise", type=_SCORE, help="Noise score in the place of the estimated one: more removes more."
)
@click.option("--blur", type=_SCORE, help="Blur score in the place of the estimated one: more sharpens more.")
@click.option(
    "--guidance", type=float, help="Scale of the guidance away from the negative prompt; 1 is none."
)
@click.option(
    "--color-fix",
    type=click.Choice(get_args(ColorFix)),
    default="wavelet",
    show_default=True,
    help="How the colours are brought back to the input's.",
)
@click.option("--prompt", help="Text to guide towards, for bundles built with --prompts runtime.")
@click.option("--negative-prompt", help="Text to guide away from, for the same bundles.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help="onnx, tensorrt or tensorrt-rtx; auto takes engines of the bundle that fit the GPU, or else onnx.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cpu, cuda, or cuda:N; all GPUs with all, some with cuda:0,cuda:1.",
)
@click.option(
    "--tile", type=int, default=128, show_default=True, help="Input pixels of a tile's side; 0 never cuts."
)
@click.option("--batch", type=int, default=4, show_default=True, help="Images or tiles computed at once.")
@click.option("--threads", type=int, help="CPU threads of the engine; all cores by default.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=MAX_PIXELS,
    show_default=True,
    help="Larger inputs are refused.",
)
@click.option("--force", is_flag=True, help="Replace results that exist.")
@click.option("--resume", is_flag=True, help="Keep results that exist and are whole; do the others.")
@click.option("--compare", is_flag=True, help="Also write NAME.compare.png, before and after side by side.")
@click.option("--dry-run", is_flag=True, help="Only list what would be done.")
@click.option("--report", type=_PATH, help="Write a summary as JSON.")
def upscale(**given: Any) -> None:  # noqa: ANN401 - the fields of UpscaleRequest, typed there
    """Upscale every INPUT ×4: files, folders (at any depth) and glob patterns of PNG, JPEG, WebP and TIFF.

    One bad image is reported and skipped, and the exit code is then 1. Ctrl-C leaves only whole results;
    --resume goes on from there.
    """
    run_upscale(UpscaleRequest(**given))


@click.command()
@click.argument("bundle", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("--check", is_flag=True, help="Compare the hash of every file, large ones too.")
def inspect(bundle: Path, as_json: bool, check: bool) -> None:
    """Show what BUNDLE was built from, what it can do, and how well it was verified."""
    manifest = Manifest.read(bundle, check="hashes" if check else "sizes")
    if as_json:
        click.echo(manifest.model_dump_json(indent=2))
    else:
        show_manifest(manifest, bundle, checked=check)
