"""Subcommands of the training room."""

from dataclasses import dataclass
from pathlib import Path

import click
from PIL import Image

from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.files import require_absent
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.pictures.reading import every_size_allowed
from s3diff_runtime.settings import PictureSettings, family_problems
from s3diff_training.checkpoints.native import read_checkpoint, write_checkpoint
from s3diff_training.checkpoints.released import write_released
from s3diff_training.data import MAX_PIXELS, from_uint8, to_uint8
from s3diff_training.families.table import arguments_of
from s3diff_training.logs import set_up_logging
from s3diff_training.weights import ModelSource


@dataclass(frozen=True)
class ConvertRequest(Options):
    """What `convert-checkpoint` is asked for."""

    source: Path = argument("The checkpoint to read.")
    output: Path = option(help="The .safetensors or .pkl file to write.", flags=("-o", "--output"))
    estimator: Path | None = option(None, "The released de_net.pth; replaces an estimator in SOURCE.")
    force: bool = option(False, "Replace existing files.")


@dataclass(frozen=True)
class RestoreRequest(Options):
    """What `restore` is asked for."""

    image: Path = argument("The picture to upscale.")
    output: Path = option(help="The picture to write, in the format of its suffix.", flags=("-o", "--output"))
    weights: ModelSource = group(ModelSource)
    settings: PictureSettings = group(PictureSettings)
    released: bool = option(
        False, "Prepare and finish as the family's released script does, to the size of its files."
    )
    force: bool = option(False, "Replace an existing OUTPUT.")


def convert_checkpoint(request: ConvertRequest) -> None:
    """Convert SOURCE, a checkpoint in our format or the released one, to the format of OUTPUT's suffix.

    .safetensors is our format: one file with everything, estimator and configuration included.

    .pkl is the released format: s3diff.pkl, and de_net.pth in the same folder.
    """
    set_up_logging()
    output = request.output
    outputs = {".safetensors": [output], ".pkl": [output, output.with_name("de_net.pth")]}.get(output.suffix)
    if outputs is None:
        raise RequestError(f"{output} names no checkpoint format; expected the suffix .safetensors or .pkl")
    for file in outputs:
        require_absent(file, request.force)
    checkpoint = read_checkpoint(request.source, request.estimator)
    if output.suffix == ".pkl":
        write_released(checkpoint, *outputs)
    else:
        write_checkpoint(checkpoint, output)
    for file in outputs:
        click.echo(file)


def restore(request: RestoreRequest) -> None:
    """Restore IMAGE (×4, or by --scale) with the PyTorch network."""
    set_up_logging()
    require_absent(request.output, request.force)
    with every_size_allowed():
        photograph = open_photograph(request.image, MAX_PIXELS)
    pixels = photograph.pixels
    network = request.weights.load()
    refuse(family_problems(FAMILIES[network.family], request.settings))
    asked = arguments_of(request.settings, FAMILIES[network.family])
    if request.released:
        image = Image.fromarray(network.restore_as_released(pixels, **asked))
    else:
        image = photograph.finish(to_uint8(network.restore(from_uint8(pixels)[None], **asked).image))
    save(image, request.output)
    click.echo(request.output)
