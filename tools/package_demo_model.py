"""Package trained weights as the small model that ships, in float16.

    python tools/package_demo_model.py runs/demo training/s3diff_training/demo_model \\
        --photographs photographs/held-out

Takes `base/base` and `lora/checkpoint.safetensors` from the folder of runs, as `tools/make_demo_model.sh`
leaves them. With `--figures` and `--sources` it writes the card too: what the model is, its measured quality
(the Markdown of `s3diff-export bench quality --card`), and the photographs that it was trained on.
"""

import copy
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from s3diff_runtime.files import write_text
from s3diff_training.checkpoints.checkpoint import Checkpoint
from s3diff_training.checkpoints.native import build_network, read_checkpoint, write_checkpoint
from s3diff_training.data import PhotographFolder
from s3diff_training.network.base import BaseModel, load_base
from s3diff_training.train.new_base import save_base

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_RUNS = ("base", "estimator", "lora-first", "lora")
_SIDE, _CROPS = 128, 4
# Everything that reads the residual stream of a Stable Diffusion UNet normalises it first (GroupNorm), or
# passes it on linearly. Its scale is therefore free, training lets it drift, and in a UNet that was trained
# from nothing it can grow beyond 65504, which overflows in float16 although nothing is wrong in float32.
_WRITERS = re.compile(r"conv_in|.*\.resnets\.\d+\.conv2|.*\.attentions\.\d+\.proj_out")
"""Layers whose output is added to the stream; they read what was normalised."""
_CARRIERS = re.compile(r".*\.conv_shortcut|.*samplers\.0\.conv")
"""Layers that read the stream itself, linearly; only their bias has a scale of its own."""
_CARD = Path(__file__).with_name("demo_model_card.md")


@click.command(help=__doc__)
@click.argument("runs", type=_FOLDER)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--photographs",
    type=_FOLDER,
    required=True,
    help="On which the UNet's activations are measured, to fit them into float16.",
)
@click.option("--figures", type=_FILE, help="Markdown with the measured quality.")
@click.option("--sources", type=_FILE, help="Markdown that lists the training photographs.")
@click.option("--machine", default="two CPU cores", help="What the weights were trained on, for the card.")
def main(
    runs: Path, output: Path, photographs: Path, figures: Path | None, sources: Path | None, machine: str
) -> None:
    """Write the weights, and the card where both of its parts are given."""
    base = load_base(runs / "base" / "base")
    checkpoint = read_checkpoint(runs / "lora" / "checkpoint.safetensors")
    factor = _factor(base, checkpoint, photographs)
    rescale_residual_stream(base.unet, factor)
    checkpoint = replace(checkpoint, tensors=rescale_lora(checkpoint.tensors, factor))
    save_base(base, output / "base", torch.float16)
    write_checkpoint(checkpoint, output / "checkpoint.safetensors", torch.float16)
    if figures and sources:
        spent = {name: _spent(runs / name) for name in _RUNS}
        card = _CARD.read_text(encoding="utf-8").format(
            vae=sum(p.numel() for p in base.vae.parameters()) / 1e6,
            unet=sum(p.numel() for p in base.unet.parameters()) / 1e6,
            rank_vae=checkpoint.config.rank_vae,
            rank_unet=checkpoint.config.rank_unet,
            minutes=sum(seconds for _, seconds in spent.values()) / 60,
            machine=machine,
            steps=", ".join(f"{name} {steps} steps" for name, (steps, _) in spent.items()),
            figures=figures.read_text().strip(),
            sources="\n".join(line for line in sources.read_text().splitlines() if line.startswith("|")),
        )
        write_text(output / "CARD.md", card)
    click.echo(output)


def _factor(base: BaseModel, checkpoint: Checkpoint, photographs: Path) -> float:
    """The power of two that leaves float16 a factor of four above the largest activation of the UNet."""
    copied = replace(base, vae=copy.deepcopy(base.vae), unet=copy.deepcopy(base.unet))
    network, largest = build_network(copied, checkpoint).eval(), 0.0

    def note(_module: nn.Module, _given: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, torch.Tensor):
            largest = max(largest, float(output.abs().max()))

    for module in network.unet.modules():
        module.register_forward_hook(note)
    crops = PhotographFolder(photographs, _SIDE).crops(_CROPS, _SIDE, torch.Generator().manual_seed(0))
    for noise, blur in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (None, None)):
        network.restore(crops / 255, noise=noise, blur=blur)
    most = torch.finfo(torch.float16).max / 4
    factor = 2.0 ** -max(math.ceil(math.log2(largest / most)), 0)
    click.echo(f"largest activation of the UNet {largest:.3g}, rescaled by {factor:g}")
    return factor


def _spent(run: Path) -> tuple[int, float]:
    """Steps and seconds of a run, from the last line of its log."""
    last = json.loads((run / "losses.jsonl").read_text().splitlines()[-1])
    return last["step"], last["seconds"]


@torch.no_grad()
def rescale_residual_stream(unet: UNet2DConditionModel, factor: float) -> None:
    """Multiply the residual stream of a UNet by a factor, in place; what the UNet computes stays the same.

    Exactly so for a power of two, but for the norms before attention, whose epsilon of 1e-6 is not an option
    of the model: keep the stream's variance well above that. The epsilon of all other norms goes with the
    factor.

    Args:
        unet: of Stable Diffusion's layout, without LoRA.
        factor: above 0.
    """
    for name, parameter in unet.named_parameters():
        parameter.mul_(_scale(name, factor))
    old = unet.config.norm_eps
    new = old * factor**2
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm) and module.eps == old:
            module.eps = new
    unet.register_to_config(norm_eps=new)


def rescale_lora(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The tensors of a checkpoint for a UNet whose residual stream was rescaled.

    Args:
        tensors: by their names in `S3Diff.state_dict()`.
        factor: as for the UNet.
    """
    return {
        name: tensor * _scale(name.removeprefix("unet."), factor) if name.startswith("unet.") else tensor
        for name, tensor in tensors.items()
    }


def _scale(name: str, factor: float) -> float:
    """What a parameter is multiplied by: `layer.weight`, `layer.bias`, or of LoRA `layer.lora_B.weight`."""
    layer, _, kind = name.rpartition(".")
    layer, _, lora = layer.partition(".lora_")
    writes = _WRITERS.fullmatch(layer) and lora != "A"
    carries = _CARRIERS.fullmatch(layer) and kind == "bias"
    return factor if writes or carries else 1.0


if __name__ == "__main__":
    main()
