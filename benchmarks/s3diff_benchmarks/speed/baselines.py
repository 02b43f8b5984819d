"""S3Diff in PyTorch as it is run without this toolkit, to be timed beside a bundle.

Two ways: as the released code runs it, and as a careful engineer would run it in PyTorch. Both take the
posterior's mode, where the released code draws a sample, and find the prompts encoded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from s3diff_benchmarks.methods import Upscaled
from s3diff_runtime.clock import Clock
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.network import (
    Modulation,
    S3Diff,
    bicubic_upscale,
    correct_color,
    lora_layers,
    merged_weight,
)
from s3diff_training.network.diffusion import guide

RELEASED = "PyTorch as released"
TUNED = "PyTorch tuned"


def released(network: S3Diff) -> PyTorchMethod:
    """The released way: fp32, the prompts one after the other, LoRA as branches."""
    return PyTorchMethod(RELEASED, network, two_passes=True)


def tuned(network: S3Diff, image: Pixels) -> PyTorchMethod:
    """The fair way: both prompts in one batch, LoRA merged, and on a GPU fp16 and `torch.compile`.

    Args:
        network: on its device; not changed, and its weights are shared where they stay the same.
        image: uint8 RGB `[H, W, 3]`, at whose degradation the LoRA is merged.
    """
    device = next(network.parameters()).device
    degradation = network.degradation(from_uint8(image)[None].to(device))
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    merged = merged_copy(network, network.modulation(degradation), dtype)
    if device.type == "cuda":
        merged.unet.compile()
        merged.vae.encoder.compile()
        merged.vae.decoder.compile()
    return PyTorchMethod(TUNED, merged, two_passes=False)


@torch.no_grad()
def merged_copy(network: S3Diff, modulation: Modulation, dtype: torch.dtype) -> S3Diff:
    """A copy of a network whose LoRA is folded in, for the first image of a batch of matrices.

    Weights that merging and `dtype` leave as they are belong to both.
    """
    tensors = (*network.parameters(), *network.buffers())
    merged = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    for part, matrices in ((merged.vae, modulation.vae), (merged.unet, modulation.unet)):
        for name, layer in lora_layers(part).items():
            matrix = None if matrices is None else matrices[0, layer.block]
            plain = layer.base_layer
            plain.weight = nn.Parameter(merged_weight(layer, matrix), requires_grad=False)
            part.set_submodule(name, plain)
    for module in merged.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != dtype:
                module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    return merged


def trainable_millions(network: S3Diff) -> float:
    """What training changes, in millions of parameters: all but base model, text encoder and estimator."""
    state = network.state_dict()
    return sum(state[name].numel() for name in network.trainable_names()) / 1e6


class PyTorchMethod:
    """The network in PyTorch, stage by stage; a `Method`.

    Args:
        name: in tables.
        network: in evaluation mode, on its device, with weights of one dtype.
        two_passes: run the prompts one after the other.
    """

    def __init__(self, name: str, network: S3Diff, two_passes: bool) -> None:
        """See the class."""
        self.name, self._network, self._two_passes = name, network, two_passes
        parameter = next(network.vae.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        prompts = network.encode_prompts([network.config.positive_prompt, network.config.negative_prompt])
        self._positive, self._negative = prompts[:1], prompts[1:]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> Upscaled:
        """See `Method`; the clock waits for the device at the end of every stage."""
        network, clock = self._network, Clock()
        with self._timed(clock, "upload"):
            image = torch.stack([from_uint8(pixels) for pixels in images]).to(self._device)
        with self._timed(clock, "estimator"):
            degradation = network.degradation(image.to(self._dtype))
        with self._timed(clock, "modulation"):
            merged = not lora_layers(network.unet)
            modulation = Modulation(None, None) if merged else network.modulation(degradation)
        with self._timed(clock, "vae_encoder"):
            latent, skips = network.encode(network.prepare(image).to(self._dtype), modulation)
        with self._timed(clock, "unet"):
            start = network.one_step.start(latent, torch.Generator().manual_seed(0))
            x0 = network.one_step.denoise(start, self._noise(start, modulation))
        with self._timed(clock, "vae_decoder"):
            decoded = network.decode(x0.to(self._dtype), modulation, skips).float()
        with self._timed(clock, "finish_wavelet"):
            height, width = (4 * side for side in image.shape[-2:])
            reference = bicubic_upscale(image).clamp(0, 1)
            upscaled = correct_color((decoded[..., :height, :width] + 1) / 2, reference, "wavelet")
        with self._timed(clock, "download"):
            pixels = [to_uint8(each[None]) for each in upscaled.cpu()]
        return Upscaled(pixels, clock.seconds)

    def _noise(self, latent: Tensor, modulation: Modulation) -> Tensor:
        network, scale = self._network, self._network.config.guidance
        if scale == 1.0:
            return network.predict_noise(latent, self._positive, modulation)
        if not self._two_passes:
            return guide(
                *network.predict_noise_pair(latent, self._positive, self._negative, modulation), scale
            )
        positive = network.predict_noise(latent, self._positive, modulation)
        return guide(positive, network.predict_noise(latent, self._negative, modulation), scale)

    @contextmanager
    def _timed(self, clock: Clock, stage: str) -> Iterator[None]:
        with clock.running(stage):
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
