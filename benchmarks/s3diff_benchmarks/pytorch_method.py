"""Networks in PyTorch, exact or as run without this toolkit, and bicubic interpolation: as `Method`s.

Two ways to run it are timed: as the released code does, and as a careful engineer would. Both take the
posterior's mode, where the released code draws a sample, and find the prompts encoded.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import nn

from s3diff_benchmarks.methods import BICUBIC, EXACT, RELEASED, TUNED, Input, Upscaled
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.clock import Clock
from s3diff_runtime.engines.cpu_options import CpuPrecision
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.data import from_uint8, to_uint8
from s3diff_training.network.bicubic import bicubic
from s3diff_training.network.lora import merge_lora
from s3diff_training.network.modulation import Modulation, ModulationNetwork
from s3diff_training.network.one_step_network import OneStepNetwork
from s3diff_training.weights import ModelSource, differing

N = TypeVar("N", bound=OneStepNetwork)


class PyTorchMethod:
    """The network in PyTorch, stage by stage. Networks that start from noise draw it with seed 0.

    Args:
        name: in tables.
        network: in evaluation mode, on its device, with weights of one dtype.
        one_batch: evaluate both prompts at once, else one after the other.
    """

    def __init__(self, name: str, network: OneStepNetwork, one_batch: bool = True) -> None:
        self.name, self._network, self._one_batch = name, network, one_batch
        self._device = next(network.vae.parameters()).device
        self._seed = 0 if network.one_step.adds_noise else None
        names = ("positive_prompt", "negative_prompt")[: len(network.prompts)]
        self._asked: dict[str, Any] = {
            name: network.encode_prompts([text]) for name, text in zip(names, network.prompts, strict=True)
        }

    @torch.inference_mode()
    def __call__(
        self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
    ) -> list[Upscaled]:
        """See `Method`; inputs of one size. The clock waits for the device at the end of every stage."""
        clock, start = Clock(), perf_counter()

        @contextmanager
        def timed(stage: str) -> Iterator[None]:
            with clock.running(stage):
                yield
                if self._device.type == "cuda":
                    torch.cuda.synchronize(self._device)

        with timed("upload"):
            image = torch.stack([from_uint8(each.pixels) for each in inputs]).to(self._device)
        scores: dict[str, Any] = {"noise": noise, "blur": blur} if self._network.degradation_axes else {}
        restored = self._network.restore(
            image, **self._asked, **scores, seed=self._seed, one_batch=self._one_batch, around=timed
        )
        with timed("download"):
            pixels = [to_uint8(each) for each in restored.image.cpu()]
        clock.add({"host": perf_counter() - start - sum(clock.seconds.values())})
        seconds = {stage: spent / len(inputs) for stage, spent in clock.seconds.items()}
        axes, found = self._network.degradation_axes, restored.degradation
        rows = [[]] * len(pixels) if found is None else found.tolist()
        return [
            Upscaled(each, seconds, dict(zip(axes, row, strict=True)))
            for each, row in zip(pixels, rows, strict=True)
        ]


@dataclass(frozen=True)
class BicubicMethod:
    """The baseline: torch's bicubic interpolation (`align_corners=False`), clamped, as in the paper."""

    name: str = BICUBIC

    def __call__(
        self, inputs: Sequence[Input], noise: float | None = None, blur: float | None = None
    ) -> list[Upscaled]:
        """See `Method`; it has no scores."""
        return [Upscaled(to_uint8(bicubic(from_uint8(each.pixels)[None]))) for each in inputs]


def exact(network: OneStepNetwork) -> PyTorchMethod:
    """The network as it is, in fp32: what all else is held against."""
    return PyTorchMethod(EXACT, network)


def released(network: OneStepNetwork) -> PyTorchMethod:
    """The released way: fp32, the prompts one after the other, LoRA as branches."""
    return PyTorchMethod(RELEASED, network, one_batch=False)


def tuned_dtype(device: torch.device, cpu_precision: CpuPrecision) -> torch.dtype:
    """What the fair way computes in: fp16 on a GPU, bf16 on a processor that has it, else fp32.

    On a CPU what was asked of OpenVINO holds for both: f32 times a processor without bf16.
    """
    if device.type == "cuda":
        return torch.float16
    if cpu_precision != "auto":
        return torch.bfloat16 if cpu_precision == "bf16" else torch.float32
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def tuned(network: OneStepNetwork, image: Pixels, dtype: torch.dtype) -> PyTorchMethod:
    """The fair way: both prompts in one batch, LoRA merged, `torch.compile` on a GPU, channels last on a CPU.

    Args:
        network: on its device; not changed, and its weights are shared where they stay the same.
        image: uint8 RGB `[H, W, 3]`, at whose degradation the LoRA is merged.
        dtype: that it computes in, see `tuned_dtype`.
    """
    device = next(network.parameters()).device
    matrices = network.matrices(from_uint8(image)[None].to(device))
    merged = merged_copy(network, matrices, dtype)
    if device.type == "cuda":
        merged.unet.compile()
        merged.vae.encoder.compile()
        merged.vae.decoder.compile()
    else:
        _lay_channels_last(merged)
    return PyTorchMethod(TUNED, merged)


@torch.no_grad()
def merged_copy(network: N, modulation: Modulation, dtype: torch.dtype) -> N:
    """A copy of a network whose LoRA is folded in, for the first image of a batch of matrices.

    Weights that merging and `dtype` leave as they are belong to both.
    """
    tensors = (*network.parameters(), *network.buffers())
    merged = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    merge_lora(merged.vae, modulation.vae)
    merge_lora(merged.unet, modulation.unet)
    merged.modulation = ModulationNetwork()
    for module in merged.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != dtype:
                module._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    return merged


def _lay_channels_last(network: nn.Module) -> None:
    """Give convolutions new weights in that layout, which their results take over; the old may be shared."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().clone(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)


def trainable_millions(network: OneStepNetwork) -> float:
    """What training changes, in millions of parameters: all but base model, text encoder and estimator."""
    state = network.state_dict()
    return sum(state[name].numel() for name in network.trainable_names()) / 1e6


def torch_device(device: str) -> str:
    """The device for torch's part: the one asked for, or the CPU where this torch serves none other."""
    return device if torch.cuda.is_available() else "cpu"


def pytorch_notes(weights: ModelSource, device: str, used: str, bundles: Sequence[Path]) -> Iterator[str]:
    """Where PyTorch did not run what the bundles run: on another device, or with other weights."""
    if not weights.named:
        return
    if used != device:
        yield f"PyTorch ran on {used}: the installed torch serves no GPU"
    files = weights.files()
    for bundle in bundles:
        if unlike := differing(files, Manifest.read(bundle)):
            yield f"{bundle} was built from another {' and another '.join(unlike)} than PyTorch ran with"
