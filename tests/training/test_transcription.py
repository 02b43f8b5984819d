"""The network against a second writing of its equations: plain diffusers models, hooks, loops and einsum.

The transcription below is made from the definitions (paper sections 3.1 to 3.2, eq. 2 to 5, and the
wavelet's) and uses nothing of `s3diff_training.network` but the prompts: the tensors come from the checkpoint
by their names, the models from diffusers. Unlike the paper's reference data, this runs everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from tests.training.small import block_index, lora_names, random_checkpoint, random_photograph, relative
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel

from s3diff_training.checkpoints.native import build_network, read_checkpoint, write_checkpoint
from s3diff_training.network.base import guide, load_base
from s3diff_training.network.config import NetworkConfig
from s3diff_training.network.model import S3Diff

CONFIG = NetworkConfig(rank_unet=5, rank_vae=3, guidance=1.3)
VAE_SCALING = 0.18215
ALPHA = 8.0  # of LoRA: the update is scaled by ALPHA / rank

Tensors = Mapping[str, Tensor]


# --- the transcription ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Transcribed:
    """What the equations give for a batch."""

    estimate: Tensor
    vae_modulation: Tensor
    unet_modulation: Tensor
    latent: Tensor
    positive: Tensor
    negative: Tensor
    x0: Tensor
    image: Tensor


def transcribe(folder: Path, tensors: Tensors, lr: Tensor) -> Transcribed:
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    unet.conv_in.load_state_dict(below(tensors, "unet.conv_in."))
    levels = len(vae.config.block_out_channels)
    height, width = (4 * side for side in lr.shape[-2:])

    bicubic = keys_upscale(lr)
    padded = reflect(bicubic.mul(2).sub(1).clamp(-1, 1), 2 ** (levels - 1) * 8)
    estimate = estimated(below(tensors, "estimator."), lr)
    frequencies = tensors["modulation.embedding.frequencies"]
    embedding = torch.stack([fourier(scores, frequencies) for scores in estimate])
    vae_modulation = modulated(below(tensors, "modulation.vae."), embedding, CONFIG.rank_vae)
    unet_modulation = modulated(below(tensors, "modulation.unet."), embedding, CONFIG.rank_unet)
    hook_lora(vae, "vae", tensors, vae_modulation, levels)
    hook_lora(unet, "unet", tensors, unet_modulation, levels)

    moments = vae.quant_conv(vae.encoder(padded))
    latent = moments[:, : moments.shape[1] // 2] * VAE_SCALING  # the mode of a Gaussian is its mean
    predictions = []
    for prompt in (CONFIG.positive_prompt, CONFIG.negative_prompt):
        text = embedded(folder, prompt).expand(len(lr), -1, -1)
        predictions.append(unet(latent, 999, encoder_hidden_states=text).sample)
    positive, negative = predictions
    alpha = cumulative_alpha(999)
    guided = negative + CONFIG.guidance * (positive - negative)
    x0 = (latent - math.sqrt(1 - alpha) * guided) / math.sqrt(alpha)
    decoded = vae.decoder(vae.post_quant_conv(x0 / VAE_SCALING)).clamp(-1, 1)
    cropped = decoded[..., :height, :width] / 2 + 0.5
    image = (wavelet_high(cropped) + wavelet_low(bicubic.clamp(0, 1))).clamp(0, 1)
    return Transcribed(estimate, vae_modulation, unet_modulation, latent, positive, negative, x0, image)


def below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def fourier(scores: Tensor, frequencies: Tensor) -> Tensor:
    """Eq. 2, one number at a time: for each score the sines of all frequencies, then the cosines."""
    numbers = []
    for score in scores.tolist():
        for function in (math.sin, math.cos):
            numbers += [function(2 * math.pi * score * w) for w in frequencies.tolist()]
    return torch.tensor(numbers)


def modulated(head: Tensors, embedding: Tensor, rank: int) -> Tensor:
    """Eq. 4: `[N, blocks, r, r]`, each C from the degradation and the embedding of its block."""

    def layer(name: str, x: Tensor) -> Tensor:
        return head[f"{name}.weight"] @ x + head[f"{name}.bias"]

    batch = []
    for sample in embedding:
        degradation = layer("degradation_mlp.0", sample).clamp(min=0)
        blocks = []
        for block in head["block_embeddings.weight"]:
            hidden = torch.cat([degradation, layer("block_mlp.0", block).clamp(min=0)])
            blocks.append(layer("fuse", hidden).reshape(rank, rank))
        batch.append(torch.stack(blocks))
    return torch.stack(batch)


def hook_lora(model: nn.Module, part: str, tensors: Tensors, modulation: Tensor, levels: int) -> None:
    """Eq. 3 behind every adapted layer: `base(x) + s B C^T A(x)`, in the released code's einsum."""
    for name in lora_names(tensors):
        if name.startswith(f"{part}."):
            a, b = (tensors[f"{name}.lora_{side}.weight"] for side in "AB")
            hook = lora_hook(a, b, modulation[:, block_index(name, levels)])
            model.get_submodule(name.removeprefix(f"{part}.")).register_forward_hook(hook)


def lora_hook(a: Tensor, b: Tensor, c: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    scaling = ALPHA / len(a)

    def add_update(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):
            down = F.conv2d(inputs[0], a, None, layer.stride, layer.padding)
            turned = torch.einsum("...khw,...kr->...rhw", down, c)
            return output + scaling * torch.einsum("nrhw,or->nohw", turned, b[:, :, 0, 0])
        turned = torch.einsum("...lk,...kr->...lr", inputs[0] @ a.T, c)
        return output + scaling * turned @ b.T

    return add_update


def estimated(tensors: Tensors, lr: Tensor) -> Tensor:
    """MM-RealSR's estimator: per score, 8 residual blocks of which 6 come before the only stride."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], stride, padding=1)

    scores = []
    for axis in (0, 1):
        x = conv(f"conv_first.{axis}", lr)
        for position in range(9):
            name = f"body.{axis}.{position}"
            if position == 6:
                x = conv(name, x, stride=2)
            else:
                x = x + conv(f"{name}.conv2", F.relu(conv(f"{name}.conv1", x)))
        for position in (0, 2):
            x = x.mean((2, 3)) if x.ndim == 4 else F.relu(x)
            name = f"fc_degree.{axis}.{position}"
            x = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        scores.append(1 / (1 + torch.exp(-x)))
    return torch.cat(scores, dim=1)


def embedded(folder: Path, prompt: str) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokens = tokenizer(prompt, max_length=77, padding="max_length", truncation=True, return_tensors="pt")
    hidden: Tensor = encoder(tokens.input_ids).last_hidden_state
    return hidden


def cumulative_alpha(timestep: int) -> float:
    """The product of `1 - beta` of SD's "scaled linear" betas up to a timestep."""
    product, first, last = 1.0, math.sqrt(0.00085), math.sqrt(0.012)
    for step in range(timestep + 1):
        product *= 1 - (first + (last - first) * step / 999) ** 2
    return product


def keys_upscale(image: Tensor) -> Tensor:
    """Bicubic x4 by Keys' kernel with a = -0.75, pixel centres at the halves, borders repeated."""
    for dimension in (2, 3):
        size = image.shape[dimension]
        matrix = torch.zeros(4 * size, size)
        for target in range(4 * size):
            centre = (target + 0.5) / 4 - 0.5
            for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
                matrix[target, min(max(tap, 0), size - 1)] += keys_kernel(abs(centre - tap))
        image = torch.tensordot(matrix, image.movedim(dimension, 0), 1).movedim(0, dimension)
    return image


def keys_kernel(distance: float, a: float = -0.75) -> float:
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)


def reflect(image: Tensor, multiple: int) -> Tensor:
    """Continue rows and columns as in a mirror whose axis is the last one, up to a multiple."""
    for dimension in (2, 3):
        size = image.shape[dimension]
        mirrored = [size - 1 - step for step in range(1, -size % multiple + 1)]
        image = image.index_select(dimension, torch.tensor([*range(size), *mirrored]))
    return image


def wavelet_low(image: Tensor) -> Tensor:
    """Five times: every pixel becomes the binomial mean of the 3x3 pixels 1, 2, 4, 8, 16 away."""
    height, width = image.shape[-2:]
    for distance in (1, 2, 4, 8, 16):
        blurred = torch.zeros_like(image)
        for row, row_weight in ((-distance, 0.25), (0, 0.5), (distance, 0.25)):
            for column, column_weight in ((-distance, 0.25), (0, 0.5), (distance, 0.25)):
                rows = (torch.arange(height) + row).clamp(0, height - 1)
                columns = (torch.arange(width) + column).clamp(0, width - 1)
                blurred += row_weight * column_weight * image[..., rows, :][..., columns]
        image = blurred
    return image


def wavelet_high(image: Tensor) -> Tensor:
    return image - wavelet_low(image)


# --- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Both:
    """The network and, for the same batch, what the equations give."""

    network: S3Diff
    lr: Tensor
    equations: Transcribed


@pytest.fixture(scope="module")
def both(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    checkpoint = random_checkpoint(load_base(base_folder), CONFIG, seed=11)
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    write_checkpoint(checkpoint, path)
    lr = random_photograph(2, 12, 20, seed=3)
    lr[1] = 1 - lr[1] ** 3  # another picture, or both would score alike
    with torch.no_grad():
        equations = transcribe(base_folder, checkpoint.tensors, lr)
    return Both(build_network(load_base(base_folder), read_checkpoint(path)), lr, equations)


def test_degradation_estimate(both: Both) -> None:
    estimate = both.network.degradation(both.lr)
    assert relative(estimate, both.equations.estimate) < 1e-5
    assert (estimate[0] - estimate[1]).abs().max() > 1e-3  # images that score alike would prove little


def test_modulation(both: Both) -> None:
    vae, unet = both.network.modulation(both.equations.estimate)
    assert relative(vae, both.equations.vae_modulation) < 1e-5
    assert relative(unet, both.equations.unet_modulation) < 1e-5


def test_latent(both: Both) -> None:
    network = both.network
    latent, skips = network.encode(network.prepare(both.lr), network.modulation(both.equations.estimate))
    assert relative(latent, both.equations.latent) < 1e-5
    assert skips == []


def test_noise_of_each_prompt_and_x0(both: Both) -> None:
    network, equations = both.network, both.equations
    prompts = [network.config.positive_prompt, network.config.negative_prompt]
    first, second = network.encode_prompts(prompts).split(1)
    modulation = network.modulation(equations.estimate)
    positive, negative = network.predict_noise_pair(equations.latent, first, second, modulation)
    assert relative(positive, equations.positive) < 1e-5
    assert relative(negative, equations.negative) < 1e-5
    assert relative(positive, equations.negative) > 1e-2
    x0 = network.one_step.denoise(equations.latent, guide(positive, negative, network.config.guidance))
    assert relative(x0, equations.x0) < 1e-4


def test_the_whole_chain(both: Both) -> None:
    restored = both.network.restore(both.lr)
    assert relative(restored.degradation, both.equations.estimate) < 1e-5
    assert relative(restored.forward.x0, both.equations.x0) < 1e-4
    assert relative(restored.image, both.equations.image) < 1e-4


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_every_block_and_the_direction_of_c_matter(both: Both, part: str) -> None:
    """The comparison above would miss a wrong block or a transposed C if these did not change the result."""
    network, equations = both.network, both.equations
    modulation = network.modulation(equations.estimate)

    def run(c: Tensor) -> Tensor:
        changed = modulation._replace(**{part: c})
        if part == "vae":
            return network.encode(network.prepare(both.lr), changed).latent
        text = network.encode_prompts([network.config.positive_prompt])
        return network.predict_noise(equations.latent, text, changed)

    c = getattr(modulation, part)
    expected = equations.latent if part == "vae" else equations.positive
    assert relative(run(c.transpose(2, 3)), expected) > 1e-3
    for block in range(c.shape[1]):
        other = c.clone()
        other[:, block] = c[:, block - 1]
        assert relative(run(other), expected) > 5e-5, block
