"""Subcommands of the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from s3diff_runtime.batch.upscaling import UpscaleRequest, run_upscale
from s3diff_runtime.bundle.inspection import show_manifest
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.command_line import takes
from s3diff_runtime.options import Options, argument, option


@click.command()
@takes(UpscaleRequest)
def upscale(request: UpscaleRequest) -> None:
    """Upscale every INPUT ×4: files, folders (at any depth) and glob patterns of pictures.

    One bad image is reported and skipped, and the exit code is then 1. Ctrl-C leaves only whole results;
    --resume goes on from there.
    """
    run_upscale(request)


@dataclass(frozen=True)
class InspectRequest(Options):
    """What `s3diff-export inspect` can be asked for."""

    bundle: Path = argument("Folder of the bundle.")
    as_json: bool = option(False, "Print the manifest as JSON.", flags=("--json",))
    check: bool = option(False, "Compare the hash of every file, large ones too.")


@click.command()
@takes(InspectRequest)
def inspect(request: InspectRequest) -> None:
    """Show what BUNDLE was built from, what it can do, and how well it was verified."""
    manifest = Manifest.read(request.bundle, check="hashes" if request.check else "sizes")
    if request.as_json:
        click.echo(manifest.model_dump_json(indent=2))
    else:
        show_manifest(manifest, request.bundle, checked=request.check)
