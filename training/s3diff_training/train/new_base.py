"""A new base model in small: an SD-like pipeline that can be trained from scratch, without SD-Turbo.

Untrained, it upscales already: the VAE averages and interpolates, the UNet predicts no noise. Training then
starts from a blurred picture instead of from noise, which on a CPU decides whether it gets anywhere.
"""

import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from s3diff_runtime.files import replacing
from s3diff_runtime.options import Options, option
from s3diff_training.logs import quiet_libraries
from s3diff_training.network.base import FIRST_TIMESTEP, BaseModel
from s3diff_training.network.config import NEGATIVE_PROMPT, POSITIVE_PROMPT

_IMAGE_CHANNELS = 3
_PAIRED = 2 * _IMAGE_CHANNELS  # SiLU passes x unchanged as SiLU(x) - SiLU(-x), so every colour goes twice
_LEVEL = 8.0  # of two constant channels, +level and -level: they dominate the norms, which become linear
_TOKENS = 77
SD_TURBO_SCHEDULER: dict[str, object] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "steps_offset": 1,
}


@dataclass(frozen=True)
class BaseArchitecture(Options):
    """Widths of a new base model. The defaults make the model that ships: 3 VAE levels, 4 UNet levels.

    The UNet's first and last level have no attention: the one is large, the other coarse.
    """

    latent_channels: int = option(16, "Channels of the latent.", least=_IMAGE_CHANNELS)
    vae_widths: tuple[int, ...] = option(
        (16, 32, 64),
        "Channels of the VAE's levels; every level but the last halves the image.",
        least=_PAIRED + 2,
    )
    unet_widths: tuple[int, ...] = option((32, 64, 96, 96), "Channels of the UNet's levels.", least=1)
    unet_groups: int = option(4, "Groups of the UNet's norms.", least=1)
    head_width: int = option(32, "Channels of an attention head.", least=1)
    text_width: int = option(64, "Width of the text encoder.", least=1)

    def problems(self) -> Iterator[str]:
        """Too few levels, and widths that groups or heads do not divide."""
        if len(self.vae_widths) < 2:
            yield f"vae_widths {self.vae_widths}: expected two or more"
        if len(self.unet_widths) < 3 or any(width % self.unet_groups for width in self.unet_widths):
            yield f"unet_widths {self.unet_widths}: expected three or more multiples of {self.unet_groups}"
        if any(width % self.head_width for width in self.unet_widths):
            yield f"unet_widths {self.unet_widths}: expected multiples of head_width {self.head_width}"


def new_base(architecture: BaseArchitecture | None = None) -> BaseModel:
    """An untrained base model, drawn from torch's default generator, that passes images through.

    The decoder's first convolution carries sqrt(alpha) of timestep 999, so the division by it in the step
    to x0 does not blow up the start of training; the formula itself stays SD-Turbo's.
    """
    sizes = architecture or BaseArchitecture()
    tokenizer = prompt_tokenizer()
    scheduler = DDPMScheduler.from_config(SD_TURBO_SCHEDULER)
    vae = _vae(sizes)
    _pass_images_through(vae, math.sqrt(float(scheduler.alphas_cumprod[FIRST_TIMESTEP])))
    unet = _unet(sizes)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return BaseModel(tokenizer, _text_encoder(sizes, tokenizer), vae, unet, scheduler.alphas_cumprod.float())


@quiet_libraries()
def save_base(base: BaseModel, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a base model as a diffusers folder that `load_base` reads, atomically, replacing an earlier one.

    `dtype` is that of the weights on disk; float16 halves them.
    """
    with replacing(path) as folder:
        base.tokenizer.save_pretrained(folder / "tokenizer")
        DDPMScheduler.from_config(SD_TURBO_SCHEDULER).save_pretrained(folder / "scheduler")
        for name in ("text_encoder", "vae", "unet"):
            copy.deepcopy(getattr(base, name)).to(dtype).save_pretrained(folder / name)


def _vae(sizes: BaseArchitecture) -> AutoencoderKL:
    levels = len(sizes.vae_widths)
    return AutoencoderKL(
        block_out_channels=sizes.vae_widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=1,  # the constant channels must share a group with the image
        scaling_factor=1.0,
        mid_block_add_attention=False,  # quadratic in the image's area, at this VAE's fine latent
        sample_size=128,
    )


def _unet(sizes: BaseArchitecture) -> UNet2DConditionModel:
    middle = len(sizes.unet_widths) - 2
    return UNet2DConditionModel(
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        block_out_channels=sizes.unet_widths,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * middle, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * middle, "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=sizes.unet_groups,
        # In diffusers this argument is the number of heads (its name is a known mistake that files rely on).
        attention_head_dim=tuple(width // sizes.head_width for width in sizes.unet_widths),
        cross_attention_dim=sizes.text_width,
        use_linear_projection=True,
        sample_size=32,
    )


def _text_encoder(sizes: BaseArchitecture, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Never trained: random features tell the prompts apart, and the UNet learns what they stand for."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.text_width,
        intermediate_size=2 * sizes.text_width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def prompt_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with the merges that our prompts need; other words fall into smaller pieces."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        special_tokens=[*letters, *(letter + "</w>" for letter in letters)],
    )
    texts = f"{POSITIVE_PROMPT} {NEGATIVE_PROMPT}".lower()
    words = texts.replace(",", " ,").replace(".", " .").split()
    learner.train_from_iterator(words, trainer)
    vocabulary = dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    for token in (start, end):
        vocabulary[token] = len(vocabulary)
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, bos_token=start, eos_token=end, model_max_length=_TOKENS
    )


@torch.no_grad()
def _pass_images_through(vae: AutoencoderKL, signal: float) -> None:
    """Set an untrained VAE to average pooling and, in the decoder, bilinear upsampling times `signal`.

    Channels 0 to 2 of every layer carry the image, 3 to 5 its negative, 6 and 7 the constants. What the
    other channels hold is random and reaches the result through layers that start at zero.
    """
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            if module.conv_shortcut is not None:
                _pass_channels(module.conv_shortcut, torch.ones(1, 1))
        elif type(module).__name__ == "Downsample2D":
            box = torch.zeros(3, 3)
            box[:2, :2] = 0.25  # diffusers pads right and below
            _pass_channels(module.conv, box)
        elif type(module).__name__ == "Upsample2D":
            tent = torch.tensor([0.25, 0.5, 0.25])
            _pass_channels(module.conv, torch.outer(tent, tent))  # after doubled pixels: bilinear
    _write_image(vae.encoder.conv_in, 1.0)
    _read_image(vae.encoder.conv_norm_out, vae.encoder.conv_out)
    for quantisation in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(quantisation.weight)
        nn.init.zeros_(quantisation.bias)
    vae.decoder.conv_in.weight.mul_(signal)
    _write_image(vae.decoder.conv_in, signal)
    _read_image(vae.decoder.conv_norm_out, vae.decoder.conv_out)


def _pass_channels(conv: nn.Conv2d, kernel: Tensor) -> None:
    """The channels that both sides have go through `kernel` alone; new ones are random, of image channels."""
    cast(Tensor, conv.bias).zero_()
    conv.weight[:, _PAIRED : _PAIRED + 2] = 0
    for channel in range(min(conv.in_channels, conv.out_channels)):
        conv.weight[channel] = 0
        conv.weight[channel, channel] = kernel


def _write_image(conv: nn.Conv2d, gain: float) -> None:
    """Write the image, its negative and the constants into the first channels."""
    conv.weight[: _PAIRED + 2] = 0
    bias = cast(Tensor, conv.bias).zero_()
    for channel in range(_IMAGE_CHANNELS):
        conv.weight[channel, channel, 1, 1] = gain
        conv.weight[channel + _IMAGE_CHANNELS, channel, 1, 1] = -gain
    bias[_PAIRED], bias[_PAIRED + 1] = _LEVEL, -_LEVEL


def _read_image(norm: nn.GroupNorm, conv: nn.Conv2d) -> None:
    """Read the image off the first channels; undo the norm, whose deviation the constants fix."""
    deviation = _LEVEL * math.sqrt(2 / norm.num_channels)
    conv.weight[:_IMAGE_CHANNELS] = 0
    cast(Tensor, conv.bias).zero_()
    for channel in range(_IMAGE_CHANNELS):
        conv.weight[channel, channel, 1, 1] = deviation
        conv.weight[channel, channel + _IMAGE_CHANNELS, 1, 1] = -deviation
