"""Make a model of SD-Turbo's size with random weights, in the released file formats.

Nothing in it was trained: it is for measuring builds, memory and speed where the real weights are not at
hand. Writes `OUT/base` (a diffusers folder, float16, 2.5 GB), `OUT/s3diff.pkl` and `OUT/de_net.pth`.

    python tools/make_full_size.py full-size
"""

from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from s3diff_training.checkpoints import capture, write_released
from s3diff_training.network import BaseModel, NetworkConfig, S3Diff, lora_layers
from s3diff_training.network.config import NEGATIVE_PROMPT, POSITIVE_PROMPT
from s3diff_training.train.new_base import SD_TURBO_SCHEDULER, prompt_tokenizer, save_base


def full_size_base() -> BaseModel:
    """SD 2.1's layout: UNet 866 M, VAE 84 M, text encoder 303 M (its vocabulary is the prompts' alone)."""
    tokenizer = prompt_tokenizer([POSITIVE_PROMPT, NEGATIVE_PROMPT])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=768,
    )
    scheduler = DDPMScheduler.from_config(SD_TURBO_SCHEDULER)
    for module in (*unet.modules(), *vae.modules()):
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            # Norms of ones and zeros would be recognised by exporters, and merged.
            nn.init.normal_(module.weight, 1.0, 0.05)
            nn.init.normal_(module.bias, 0.0, 0.05)
    return BaseModel(tokenizer, CLIPTextModel(text).eval(), vae, unet, scheduler.alphas_cumprod.float())


@click.command(help=__doc__)
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
def main(output: Path) -> None:
    """Make the model in the folder OUTPUT."""
    torch.manual_seed(0)
    base = full_size_base()
    save_base(base, output / "base", torch.float16)
    network = S3Diff(base, NetworkConfig())
    for layer in (*lora_layers(network.unet).values(), *lora_layers(network.vae).values()):
        nn.init.normal_(layer.lora_B.weight, std=0.01)
    write_released(capture(network), output / "s3diff.pkl", output / "de_net.pth")


if __name__ == "__main__":
    main()
