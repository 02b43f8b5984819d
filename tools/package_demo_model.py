"""Package trained weights as the small model that ships, in float16.

    python tools/package_demo_model.py runs/demo training/s3diff_training/demo_model

Takes `base/base` and `lora/checkpoint.safetensors` from the folder of runs, as `tools/make_demo_model.sh`
leaves them. With `--figures` and `--sources` it writes the card too: what the model is, its measured quality
(the Markdown of `s3diff-export evaluate`), and the photographs that it was trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from s3diff_training.checkpoints import read_checkpoint, write_checkpoint
from s3diff_training.files import replacing
from s3diff_training.network import load_base
from s3diff_training.train.new_base import save_base

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_RUNS = ("base", "estimator", "lora-first", "lora")
_CARD = """# The small model that ships with s3diff-export

S3Diff's architecture in small: a VAE with {vae:.2f} M parameters, a UNet with {unet:.2f} M, LoRA of rank
{rank_vae} in the encoder and {rank_unet} in the UNet, modulated by block, and the paper's degradation
estimator. It exists to try and to test the toolkit, on a CPU too; it is not S3Diff, and no part of SD-Turbo
is in it.

Made from random weights by `tools/make_demo_model.sh` with this project's own commands, on photographs
with free licences alone: {minutes:.0f} minutes of training on two CPU cores ({steps}).

## Measured

{figures}

## Photographs

The weights are under the Apache Licence 2.0 like the code. They hold none of the photographs; their authors,
with thanks:

{sources}
"""


@click.command(help=__doc__)
@click.argument("runs", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--figures", type=_FILE, help="Markdown with the measured quality.")
@click.option("--sources", type=_FILE, help="Markdown that lists the training photographs.")
def main(runs: Path, output: Path, figures: Path | None, sources: Path | None) -> None:
    """Write the weights, and the card where both of its parts are given."""
    base = load_base(runs / "base" / "base")
    checkpoint = read_checkpoint(runs / "lora" / "checkpoint.safetensors")
    save_base(base, output / "base", torch.float16)
    write_checkpoint(checkpoint, output / "checkpoint.safetensors", torch.float16)
    if figures and sources:
        spent = {name: _spent(runs / name) for name in _RUNS}
        card = _CARD.format(
            vae=sum(p.numel() for p in base.vae.parameters()) / 1e6,
            unet=sum(p.numel() for p in base.unet.parameters()) / 1e6,
            rank_vae=checkpoint.config.rank_vae,
            rank_unet=checkpoint.config.rank_unet,
            minutes=sum(seconds for _, seconds in spent.values()) / 60,
            steps=", ".join(f"{name} {steps} steps" for name, (steps, _) in spent.items()),
            figures=figures.read_text().strip(),
            sources=_table(sources),
        )
        with replacing(output / "CARD.md") as temporary:
            temporary.write_text(card)
    click.echo(output)


def _spent(run: Path) -> tuple[int, float]:
    """Steps and seconds of a run, from the last line of its log."""
    last = json.loads((run / "losses.jsonl").read_text().splitlines()[-1])
    return last["step"], last["seconds"]


def _table(sources: Path) -> str:
    return "\n".join(line for line in sources.read_text().splitlines() if line.startswith("|"))


if __name__ == "__main__":
    main()
