"""Subcommands of the training room."""

from __future__ import annotations

from pathlib import Path

import click

from s3diff_runtime.errors import RequestError
from s3diff_training.checkpoints import build_network, read_checkpoint, write_checkpoint, write_released
from s3diff_training.data import read_image, save_image
from s3diff_training.logs import set_up_logging
from s3diff_training.network import load_base

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("source", type=_FILE)
@click.option("--estimator", type=_FILE, help="The released de_net.pth; replaces an estimator in SOURCE.")
@click.option("-o", "--output", type=_FILE, required=True, help="The .safetensors or .pkl file to write.")
@click.option("--force", is_flag=True, help="Replace existing files.")
def convert_checkpoint(source: Path, estimator: Path | None, output: Path, force: bool) -> None:
    """Convert SOURCE, a checkpoint in our format or the released one, to the format of OUTPUT's suffix.

    .safetensors is our format: one file with everything, estimator and configuration included.

    .pkl is the released format: s3diff.pkl, and de_net.pth in the same folder.
    """
    set_up_logging()
    outputs = {".safetensors": [output], ".pkl": [output, output.with_name("de_net.pth")]}.get(output.suffix)
    if outputs is None:
        raise RequestError(f"{output} names no checkpoint format; expected the suffix .safetensors or .pkl")
    for file in outputs:
        _refuse_existing(file, force)
    checkpoint = read_checkpoint(source, estimator)
    if output.suffix == ".pkl":
        write_released(checkpoint, *outputs)
    else:
        write_checkpoint(checkpoint, output)
    for file in outputs:
        click.echo(file)


@click.command()
@click.argument("image", type=_FILE)
@click.option("--base", required=True, help="SD-Turbo: a diffusers folder or a hub id.")
@click.option("--checkpoint", type=_FILE, required=True, help="A .safetensors checkpoint or s3diff.pkl.")
@click.option("--estimator", type=_FILE, help="The released de_net.pth.")
@click.option("--noise", type=float, help="Noise score in [0, 1]; estimated if not given.")
@click.option("--blur", type=float, help="Blur score in [0, 1]; estimated if not given.")
@click.option("-o", "--output", type=_FILE, required=True, help="The PNG to write.")
@click.option("--force", is_flag=True, help="Replace an existing OUTPUT.")
def restore(
    image: Path,
    base: str,
    checkpoint: Path,
    estimator: Path | None,
    noise: float | None,
    blur: float | None,
    output: Path,
    force: bool,
) -> None:
    """Upscale IMAGE x4 with the PyTorch network."""
    set_up_logging()
    _refuse_existing(output, force)
    network = build_network(load_base(base), read_checkpoint(checkpoint, estimator))
    restored = network.restore(read_image(image)[None], noise=noise, blur=blur)
    save_image(restored.image[0], output)
    click.echo(output)


def _refuse_existing(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise RequestError(f"{output} exists; pass --force to replace it")
