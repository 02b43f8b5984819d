"""The stages of the network as modules with plain tensors in and out, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from s3diff_export.graphs.derive import LayerMaker, derive
from s3diff_export.graphs.dynamic import branching
from s3diff_export.graphs.fused import fusing
from s3diff_export.graphs.merged import merging
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.unet import OneStepUNet
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import ColorFix
from s3diff_training.network import Modulation, S3Diff, bicubic_upscale, correct_color
from s3diff_training.network.color import reflect_to_multiple
from s3diff_training.network.diffusion import guide
from s3diff_training.network.lora import ModulationSlot, lora_layers

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_EXAMPLE_BATCH = 2  # what a graph is traced with; batch 1 would be specialised
IMAGE = ("batch", "height", "width", 3)


@dataclass(frozen=True)
class StageGraph:
    """A stage ready for export."""

    stage: str
    bin: str | None
    """The bin whose weights are in it; None for a stage that serves all."""
    module: nn.Module
    """In evaluation mode; takes the inputs in their order."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    multiple: int
    """What the sides of a `latent` or `x0` input are multiples of."""

    def example(self) -> tuple[Tensor, ...]:
        """Random inputs of the right types, with every free axis at a size of its own where it may differ."""
        sizes = {"batch": _EXAMPLE_BATCH, "height": 12, "width": 28, "prompts": 2}
        sizes |= {"latent_height": self.multiple, "latent_width": 2 * self.multiple}
        sizes |= {"decoded_height": 64, "decoded_width": 128}
        generator = torch.Generator().manual_seed(0)
        return tuple(_example(spec, sizes, generator) for spec in self.inputs)


def stage_graphs(
    network: S3Diff, options: GraphOptions, bins: Sequence[tuple[str, float, float]] = ()
) -> Iterator[StageGraph]:
    """All stages, made one at a time as the caller asks for them; the network stays as it is.

    Args:
        network: in evaluation mode, fp32, on the CPU.
        options: mode, precision, prompts, guidance.
        bins: name, noise and blur of the points to merge at, for `merged`.

    Raises:
        RequestError: for a network that adds noise or has skip connections, and for `merged` without bins.
    """
    problems = []
    if network.one_step.adds_noise:
        problems.append("it starts from noise (start_step), so its result is random")
    if network.skips is not None:
        problems.append("it has skip connections between encoder and decoder")
    if problems:
        raise RequestError(f"this checkpoint cannot be exported: {'; '.join(problems)}")
    if options.lora_mode == "merged" and not bins:
        raise RequestError("lora mode merged needs one bin or more")
    maker = _Maker(network, options, bins)
    yield maker.estimator()
    if maker.modulated:
        yield maker.modulation()
    yield from maker.per_bin(maker.encoder, _has_lora(network.vae.encoder, network.vae.quant_conv))
    yield from maker.per_bin(maker.unet, _has_lora(network.unet))
    yield from maker.per_bin(maker.decoder, _has_lora(network.vae.decoder, network.vae.post_quant_conv))
    for fix in get_args(ColorFix):
        yield maker.finish(fix)
    if options.prompts == "runtime":
        yield maker.text_encoder()


class _Stage(nn.Module):
    """A function of named tensors. The LoRA layers read the modulation that is among them from the slot."""

    def __init__(
        self,
        names: Sequence[str],
        compute: Callable[..., Tensor | tuple[Tensor, ...]],
        parts: Sequence[nn.Module],
        slot: ModulationSlot | None = None,
    ) -> None:
        super().__init__()
        self.names, self.compute, self.slot = tuple(names), compute, slot
        self.parts = nn.ModuleList(parts)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Tensors in the order of the names."""
        given = dict(zip(self.names, tensors, strict=True))
        modulation = next((given.pop(name) for name in self.names if name.endswith("_modulation")), None)
        if self.slot is None:
            return self.compute(**given)
        with self.slot.holding(modulation):
            return self.compute(**given)


class _Maker:
    """Makes the stages of one network under one set of options."""

    def __init__(
        self, network: S3Diff, options: GraphOptions, bins: Sequence[tuple[str, float, float]]
    ) -> None:
        self.network, self.options, self.bins = network, options, bins
        self.dtype = _DTYPES[options.precision]
        self.modulated = options.lora_mode != "merged" and network.modulation.embedding is not None
        self.unet_multiple = network.multiple // network.vae_factor
        channels = network.vae.config.latent_channels
        self.latent = ("batch", channels, "latent_height", "latent_width")

    def per_bin(
        self, make: Callable[[str | None, Modulation], StageGraph], has_lora: bool
    ) -> Iterator[StageGraph]:
        """The stage once, or once per bin where it holds weights that are merged at the bin."""
        if self.options.lora_mode != "merged" or not has_lora or self.network.modulation.embedding is None:
            yield make(None, self.network.modulation(torch.zeros(1, 2)))
            return
        for name, noise, blur in self.bins:
            scores = {"noise": noise, "blur": blur}
            point = torch.tensor([[scores[axis] for axis in self.network.config.degradation_axes]])
            with torch.no_grad():
                modulation = self.network.modulation(point)
            yield make(name, modulation)

    def estimator(self) -> StageGraph:
        estimator = self.network.estimator
        return self._graph(
            "estimator",
            [("image", "uint8", IMAGE)],
            [("degradation", "float32", ("batch", 2))],
            lambda image: estimator(_unit(image)),
            [estimator],
        )

    def modulation(self) -> StageGraph:
        modulation = self.network.modulation
        outputs = [
            (f"{part}_modulation", "float32", ("batch", head.blocks, head.rank, head.rank))
            for part, head in (("vae", modulation.vae), ("unet", modulation.unet))
            if head is not None
        ]
        return self._graph(
            "modulation",
            [("degradation", "float32", ("batch", 2))],
            outputs,
            lambda degradation: tuple(c for c in modulation(degradation) if c is not None),
            [modulation],
        )

    def encoder(self, bin: str | None, modulation: Modulation) -> StageGraph:
        vae, multiple, slot = self.network.vae, self.network.multiple, ModulationSlot()
        make, extra = self._layers("vae", modulation.vae, slot, _has_lora(vae.encoder, vae.quant_conv))
        encoder = derive(vae.encoder, self.dtype, make)
        quantise = derive(vae.quant_conv or nn.Identity(), self.dtype, make)  # VAEs of 16 channels have none
        scale, channels = vae.config.scaling_factor, vae.config.latent_channels

        def compute(image: Tensor) -> Tensor:
            upscaled = (bicubic_upscale(_unit(image)) * 2 - 1).clamp(-1, 1)
            moments = quantise(encoder(reflect_to_multiple(upscaled, multiple).to(self.dtype)))
            latent: Tensor = moments[:, :channels].float() * scale  # the mode of the posterior
            return latent

        inputs = [("image", "uint8", IMAGE), *extra]
        return self._graph(
            "vae_encoder",
            inputs,
            [("latent", "float32", self.latent)],
            compute,
            [encoder, quantise],
            bin,
            slot,
        )

    def unet(self, bin: str | None, modulation: Modulation) -> StageGraph:
        network, options, slot = self.network, self.options, ModulationSlot()
        make, extra = self._layers("unet", modulation.unet, slot, _has_lora(network.unet))
        texts = [network.config.positive_prompt, network.config.negative_prompt]
        count = 2 if options.guidance == "on" else 1
        prompts = network.encode_prompts(texts[:count]) if options.prompts == "folded" else None
        with torch.no_grad():
            by_image = slot if options.lora_mode == "dynamic" else None
            unet = OneStepUNet(network.unet, network.one_step.timestep, make, by_image, self.dtype, prompts)

        def compute(latent: Tensor, guidance: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
            noise = unet(latent, prompts).float()
            if guidance is not None:
                positive, negative = noise.chunk(2)
                noise = guide(positive, negative, guidance)
            return network.one_step.denoise(latent, noise)

        inputs: list[Any] = [("latent", "float32", self.latent)]
        inputs += [("guidance", "float32", ())] if options.guidance == "on" else []
        inputs += extra
        if options.prompts == "runtime":
            width = network.text_encoder.config.hidden_size
            inputs += [("prompts", "float32", (count, network.tokenizer.model_max_length, width))]
        return self._graph("unet", inputs, [("x0", "float32", self.latent)], compute, [unet], bin, slot)

    def decoder(self, bin: str | None, modulation: Modulation) -> StageGraph:
        vae, slot = self.network.vae, ModulationSlot()
        make, extra = self._layers("vae", modulation.vae, slot, _has_lora(vae.decoder, vae.post_quant_conv))
        decoder = derive(vae.decoder, self.dtype, make)
        quantise = derive(vae.post_quant_conv or nn.Identity(), self.dtype, make)
        scale = vae.config.scaling_factor

        def compute(x0: Tensor) -> Tensor:
            decoded: Tensor = decoder(quantise((x0 / scale).to(self.dtype))).float().clamp(-1, 1)
            return decoded

        decoded = ("batch", 3, "decoded_height", "decoded_width")
        return self._graph(
            "vae_decoder",
            [("x0", "float32", self.latent), *extra],
            [("decoded", "float32", decoded)],
            compute,
            [decoder, quantise],
            bin,
            slot,
        )

    def finish(self, fix: ColorFix) -> StageGraph:
        def compute(decoded: Tensor, image: Tensor) -> Tensor:
            low = bicubic_upscale(_unit(image)).clamp(0, 1)
            restored = (decoded[..., : low.shape[-2], : low.shape[-1]] + 1) / 2
            levels = (correct_color(restored, low, fix) * 255).round()
            return levels.permute(0, 2, 3, 1).to(torch.uint8)  # TensorRT takes uint8 only next to a Cast

        return self._graph(
            f"finish_{fix}",
            [
                ("decoded", "float32", ("batch", 3, "decoded_height", "decoded_width")),
                ("image", "uint8", IMAGE),
            ],
            [("upscaled", "uint8", ("batch", "upscaled_height", "upscaled_width", 3))],
            compute,
            [],
        )

    def text_encoder(self) -> StageGraph:
        encoder, length = self.network.text_encoder, self.network.tokenizer.model_max_length
        return self._graph(
            "text_encoder",
            [("tokens", "int64", ("prompts", length))],
            [("prompts", "float32", ("prompts", length, encoder.config.hidden_size))],
            lambda tokens: encoder(tokens)[0],
            [encoder],
        )

    def _layers(
        self, part: str, modulation: Tensor | None, slot: ModulationSlot, has_lora: bool
    ) -> tuple[LayerMaker, list[tuple[str, str, tuple[int | str, ...]]]]:
        """What makes the LoRA layers of a part, and the input that they need: the modulation, or nothing."""
        if not self.modulated or modulation is None or not has_lora:
            return merging(None if modulation is None else modulation[0], self.dtype), []
        dynamic = self.options.lora_mode == "dynamic"
        shape: tuple[int | str, ...] = ("batch" if dynamic else 1, *modulation.shape[1:])
        make = (branching if dynamic else fusing)(slot, self.dtype)
        return make, [(f"{part}_modulation", "float32", shape)]

    def _graph(
        self,
        stage: str,
        inputs: Sequence[tuple[str, Any, tuple[int | str, ...]]],
        outputs: Sequence[tuple[str, Any, tuple[int | str, ...]]],
        compute: Callable[..., Any],
        parts: Sequence[nn.Module],
        bin: str | None = None,
        slot: ModulationSlot | None = None,
    ) -> StageGraph:
        """Bind names, types and shapes to a computation."""
        before, after = (
            tuple(TensorSpec(name=name, dtype=dtype, shape=shape) for name, dtype, shape in side)
            for side in (inputs, outputs)
        )
        module = _Stage([spec.name for spec in before], compute, parts, slot).eval().requires_grad_(False)
        return StageGraph(stage, bin, module, before, after, self.unet_multiple)


def _unit(image: Tensor) -> Tensor:
    """Uint8 NHWC to float32 NCHW in [0, 1]; the cast comes first, where TensorRT takes uint8."""
    return image.to(torch.float32).permute(0, 3, 1, 2) / 255


def _has_lora(*modules: nn.Module | None) -> bool:
    return any(module is not None and lora_layers(module) for module in modules)


def _example(spec: TensorSpec, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    if spec.dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if spec.dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    return torch.rand(shape, generator=generator) - (0.5 if spec.name in ("latent", "x0", "decoded") else 0.0)
