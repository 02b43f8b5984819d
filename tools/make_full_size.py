"""Make a model of SD-Turbo's size with random weights, in the released file formats.

Nothing in it was trained: it is for measuring builds, memory and speed where the real weights are not at
hand. Writes `OUT/base` (a diffusers folder, float16, 2.5 GB), and `OUT/s3diff.pkl` and `OUT/de_net.pth`, or
`OUT/osediff.pkl`.

    python tools/make_full_size.py full-size
    python tools/make_full_size.py full-size-osediff --family osediff
"""

import tomllib
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from s3diff_training.checkpoints.native import capture
from s3diff_training.checkpoints.released import write_released
from s3diff_training.families.osediff import CHECKPOINT as OSEDIFF_CHECKPOINT
from s3diff_training.families.osediff import OSEDiff
from s3diff_training.families.plain_lora import PlainLoRA
from s3diff_training.network.base import BaseModel
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.lora import lora_layers, targeted_layers
from s3diff_training.network.model import S3Diff
from s3diff_training.train.new_base import SD_TURBO_SCHEDULER, prompt_tokenizer, save_base

_OSEDIFF_RANK = 4
_LAYOUT = Path(__file__).with_name("full_size.toml")


def full_size_base() -> BaseModel:
    """The base model that `full_size.toml` lays out, with random weights."""
    layout = tomllib.loads(_LAYOUT.read_text(encoding="utf-8"))
    tokenizer = prompt_tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(vocab_size=len(tokenizer), **layout["text"], **special)
    unet = UNet2DConditionModel(**layout["unet"])
    vae = AutoencoderKL(**layout["vae"])
    scheduler = DDPMScheduler.from_config(SD_TURBO_SCHEDULER)
    for module in (*unet.modules(), *vae.modules()):
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            # Norms of ones and zeros would be recognised by exporters, and merged.
            nn.init.normal_(module.weight, 1.0, 0.05)
            nn.init.normal_(module.bias, 0.0, 0.05)
    return BaseModel(tokenizer, CLIPTextModel(text).eval(), vae, unet, scheduler.alphas_cumprod.float().cpu())


def osediff_checkpoint(base: BaseModel) -> dict[str, object]:
    """What `osediff.pkl` holds: LoRA of rank 4 where S3Diff has it, and on the UNet's first convolution."""
    config = NetworkConfig()
    unet_layers = ("conv_in", *targeted_layers(base.unet, config.unet_targets))
    vae_layers = tuple(targeted_layers(base.vae, config.vae_targets))
    network = OSEDiff(base, *(PlainLoRA(_OSEDIFF_RANK, layers) for layers in (unet_layers, vae_layers)))
    adapters = {"down_blocks": "encoder", "conv_in": "encoder", "up_blocks": "decoder", "conv_out": "decoder"}
    groups = {name: adapters.get(name.partition(".")[0], "others") for name in unet_layers}
    states: list[dict[str, torch.Tensor]] = []
    for part, named in ((network.unet, groups), (network.vae, dict.fromkeys(vae_layers, "encoder"))):
        states.append({})
        for name, layer in lora_layers(part).items():
            nn.init.normal_(layer.lora_B.weight, std=0.01)
            for half in ("lora_A", "lora_B"):
                weight = getattr(layer, half).weight.detach()
                states[-1][f"{name}.{half}.default_{named[name]}.weight"] = weight
    first = lora_layers(network.unet)["conv_in"].base_layer
    whole = {f"conv_in.base_layer.{name}": value.detach() for name, value in first.named_parameters()}
    lists = {
        f"unet_lora_{group}_modules": [name for name, its in groups.items() if its == group]
        for group in ("encoder", "decoder", "others")
    }
    return {
        "rank_unet": _OSEDIFF_RANK,
        "rank_vae": _OSEDIFF_RANK,
        **lists,
        "vae_lora_encoder_modules": list(vae_layers),
        "state_dict_unet": states[0] | whole,
        "state_dict_vae": states[1],
    }


@click.command(help=__doc__)
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--family", type=click.Choice(["s3diff", "osediff"]), default="s3diff", show_default=True, help="Whose."
)
@click.option("--device", default="cpu", show_default=True, help="That draws the numbers; cuda is fastest.")
def main(output: Path, family: str, device: str) -> None:
    """Make the model in the folder OUTPUT."""
    torch.manual_seed(0)
    with torch.device(device):
        base = full_size_base()
    for module in (base.text_encoder, base.vae, base.unet):
        module.cpu()
    save_base(base, output / "base", torch.float16)
    if family == "osediff":
        torch.save(osediff_checkpoint(base), output / OSEDIFF_CHECKPOINT)
        return
    network = S3Diff(base, NetworkConfig())
    for layer in (*lora_layers(network.unet).values(), *lora_layers(network.vae).values()):
        nn.init.normal_(layer.lora_B.weight, std=0.01)
    write_released(capture(network), output / "s3diff.pkl", output / "de_net.pth")


if __name__ == "__main__":
    main()
