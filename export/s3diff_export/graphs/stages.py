"""The stages of the network as modules with plain tensors in and out, one at a time."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from s3diff_export.graphs import fused, merged
from s3diff_export.graphs.attention import derive_coder, query_scales
from s3diff_export.graphs.derive import LayerMaker, derive, frozen
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.passes import pass_layers, x0_of_pass
from s3diff_export.graphs.unet import OneStepUNet, unet_factor
from s3diff_runtime.bundle.manifest import SHARED, Bin
from s3diff_runtime.bundle.records import TensorSpec
from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.families import FAMILIES
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.stages import STAGES, TENSORS, Dtype, finish_of, layer_tensor, scale_key
from s3diff_runtime.strengths import PASSES, PassName
from s3diff_runtime.vocabulary import COLOR_FIXES, SCALES, ColorFix
from s3diff_training.families.pisasr import PiSASR
from s3diff_training.network.base import guide
from s3diff_training.network.lora import ModulatedLoRA, ModulationSlot, Slot, lora_layers
from s3diff_training.network.one_step_network import OneStepNetwork

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_NAMES: Mapping[torch.dtype, Dtype] = {torch.float32: "float32", torch.float16: "float16"}
_EXAMPLE_BATCH = 2  # what a graph is traced with; batch 1 would be specialised
_PARTS = ("vae", "unet")
_NOTHING: Mapping[int | str, int] = {}


@dataclass(frozen=True)
class StageGraph:
    """A stage ready for export."""

    stage: str
    key: str
    """The bin whose weights are in it, the scale that it enlarges by, or `SHARED` for one that serves all."""
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
        sizes |= {"upscaled_height": 48, "upscaled_width": 112}
        sizes |= {"decoded_height": 64, "decoded_width": 128}
        generator = torch.Generator().manual_seed(0)
        return tuple(_example(spec, sizes, generator) for spec in self.inputs)


def stage_graphs(
    network: OneStepNetwork,
    options: GraphOptions,
    bins: Sequence[Bin] = (),
    color_fixes: Sequence[ColorFix] = COLOR_FIXES,
    scales: Sequence[int] = SCALES,
) -> Iterator[StageGraph]:
    """All stages in their order, made one at a time as the caller asks for them; the network stays as it is.

    Args:
        network: in evaluation mode, fp32, on the CPU.
        options: mode, precision, prompts, guidance.
        bins: the points to merge at, for modes that have bins.
        color_fixes: the corrections to make stages for.
        scales: to make graphs for that enlarge.

    Raises:
        RequestError: for a network that adds noise or has skip connections, and for a mode without its bins.
    """
    problems = []
    if network.one_step.adds_noise:
        problems.append("it starts from noise (start_step), so its result is random")
    if network.skips is not None:
        problems.append("it has skip connections between encoder and decoder")
    refuse(problems, "this checkpoint cannot be exported")
    family = FAMILIES[network.family]
    if family.has_bins(options.lora_mode) and not bins:
        raise RequestError(f"lora mode {options.lora_mode} needs one bin or more")
    maker, vae = _StageMaker(network, options, bins), network.vae
    if options.prompts == "runtime":
        yield maker.text_encoder()
    if network.estimator is not None:
        yield maker.estimator(network.estimator)
    if maker.modulations and LORA_MODES[options.lora_mode].takes_modulation:
        yield maker.modulation()
    yield from maker.weights()
    for scale in scales:
        yield maker.enlarge(scale)
    yield from map(maker.encoder, maker.layers_of("vae", vae.encoder, vae.quant_conv))
    if family.is_adjustable(options.lora_mode):
        yield from map(maker.unet_of_pass, PASSES)
    else:
        yield from map(maker.unet, maker.layers_of("unet", network.unet))
    yield from map(maker.decoder, maker.layers_of("vae", vae.decoder, vae.post_quant_conv))
    for fix in COLOR_FIXES:
        if fix in color_fixes:
            yield maker.finish(fix)


def is_guided(network: OneStepNetwork, options: GraphOptions) -> bool:
    """Whether the UNet's stage is guided away from a negative prompt."""
    return options.guidance == "on" and FAMILIES[network.family].guides


def layers_of_mode(mode: LoraMode) -> Callable[[ModulationSlot, torch.dtype], LayerMaker]:
    """`make_layers` of the module of a mode that reads matrices: makes what takes the place of LoRA layers.

    The slot holds the matrices of the bin now, for modes that have bins; for others those of each call then.
    """
    make_layers: Callable[[ModulationSlot, torch.dtype], LayerMaker]
    make_layers = importlib.import_module(f"s3diff_export.graphs.{mode}").make_layers
    return make_layers


@dataclass(frozen=True)
class _PartLayers:
    """What takes the place of the LoRA layers of one part of the network in one graph, if it has any."""

    make: LayerMaker = lambda layer: layer
    key: str = SHARED
    """See `StageGraph.key`."""
    slot: ModulationSlot = field(default_factory=ModulationSlot)
    """That the new layers read while the graph runs."""
    modulation: str | None = None
    """The input that holds their matrices; None where they need none."""
    weights: tuple[TensorSpec, ...] = ()
    """The inputs that hold their weights."""
    weight_slot: Slot[Mapping[str, Tensor]] = field(default_factory=Slot)
    """In which they find those."""


_NO_LAYERS = _PartLayers()


class _Stage(nn.Module):
    """A function of named tensors. LoRA layers find the modulation that is among them in their slot."""

    def __init__(
        self,
        names: Sequence[str],
        compute: Callable[..., Tensor | tuple[Tensor, ...]],
        parts: Sequence[nn.Module],
        layers: _PartLayers,
    ) -> None:
        super().__init__()
        self.names, self.compute, self.layers = tuple(names), compute, layers
        self.parts = nn.ModuleList(parts)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Tensors in the order of the names."""
        given = dict(zip(self.names, tensors, strict=True))
        modulation = given.pop(self.layers.modulation) if self.layers.modulation else None
        weights = {spec.name: given.pop(spec.name) for spec in self.layers.weights}
        with self.layers.slot.holding(modulation), self.layers.weight_slot.holding(weights):
            return self.compute(**given)


class _StageMaker:
    """Makes the stages of one network under one set of options."""

    def __init__(self, network: OneStepNetwork, options: GraphOptions, bins: Sequence[Bin]) -> None:
        self.network, self.options, self.bins = network, options, bins
        self.guided = is_guided(network, options)
        self.given_prompts = ("prompts",) if options.prompts == "runtime" else ()
        self.dtype, self.traits = _DTYPES[options.precision], LORA_MODES[options.lora_mode]
        heads = {part: getattr(network.modulation, part) for part in _PARTS}
        self.modulations = tuple(f"{part}_modulation" for part, head in heads.items() if head is not None)
        self.sizes: dict[int | str, int] = {
            "latent_channels": network.vae.config.latent_channels,
            "tokens": network.tokenizer.model_max_length,
            "text_width": network.text_encoder.config.hidden_size,
        }
        for part, head in heads.items():
            if head is not None:
                self.sizes |= {f"{part}_blocks": head.blocks, f"{part}_rank": head.rank}

    def layers_of(self, part: str, *modules: nn.Module | None) -> Iterator[_PartLayers]:
        """Of a stage with these modules: once, or once per bin where its weights depend on the bin.

        Where nothing is modulated, LoRA is folded into the weights, exactly, whatever the mode.
        """
        modulation: str | None = f"{part}_modulation"
        has_lora = any(module is not None and lora_layers(module) for module in modules)
        if modulation not in self.modulations or not has_lora:
            yield _PartLayers(merged.make_layers(ModulationSlot(), self.dtype))
            return
        if self.traits.gives_weights:
            yield self._given_weights(part, modules)
            return
        if not self.traits.takes_modulation:
            modulation = None
        for bin in self.bins if self.traits.has_bins else (None,):
            slot = ModulationSlot()
            with slot.holding(None if bin is None else self._matrices(part, bin)):
                make = layers_of_mode(self.options.lora_mode)(slot, self.dtype)
            yield _PartLayers(make, SHARED if bin is None else bin.name, slot, modulation)

    def _given_weights(self, part: str, modules: Sequence[nn.Module | None]) -> _PartLayers:
        """Of a stage that reads its layers' weights."""
        names = {layer: layer_tensor(f"{part}_weights", name) for name, layer in self._layers(part).items()}
        read = [layer for each in modules if each is not None for layer in lora_layers(each).values()]
        slot = Slot[Mapping[str, Tensor]]()
        specs = tuple(self._weight_spec(names[layer], layer) for layer in read)
        make = fused.make_layers(slot, names, self.dtype)
        return _PartLayers(make, weights=specs, weight_slot=slot)

    def _layers(self, part: str) -> dict[str, ModulatedLoRA]:
        """The LoRA layers of a part of the network, by their paths in it."""
        return lora_layers(getattr(self.network, part))

    def _weight_spec(self, name: str, layer: ModulatedLoRA) -> TensorSpec:
        return TensorSpec(name=name, dtype=_NAMES[self.dtype], shape=tuple(layer.base_layer.weight.shape))

    @torch.no_grad()
    def _matrices(self, part: str, bin: Bin) -> Tensor:
        """C of a part at a bin's centre: `[1, blocks, r, r]`."""
        point = torch.tensor([[getattr(bin, axis) for axis in self.network.degradation_axes]])
        matrices: Tensor = getattr(self.network.modulation(point), part)
        return matrices

    def estimator(self, estimator: nn.Module) -> StageGraph:
        return self._graph("estimator", lambda image: estimator(_unit(image)), [estimator])

    def modulation(self) -> StageGraph:
        modulation = self.network.modulation
        return self._graph(
            "modulation",
            lambda degradation: tuple(c for c in modulation(degradation) if c is not None),
            [modulation],
            extra=self.modulations,
        )

    def weights(self) -> Iterator[StageGraph]:
        """The weights of each part whose layers are given theirs."""
        for part in _PARTS if self.traits.gives_weights else ():
            if f"{part}_modulation" in self.modulations and self._layers(part):
                yield self._weights_of(part)

    def _weights_of(self, part: str) -> StageGraph:
        layers, stage = self._layers(part), f"{part}_weights"
        scales = query_scales(getattr(self.network, part))
        weights = fused.LayerWeights(tuple(layers.values()), scales, self.dtype)
        graph = self._graph(stage, lambda **given: weights(given[f"{part}_modulation"]), [weights])
        specs = (self._weight_spec(layer_tensor(stage, name), layer) for name, layer in layers.items())
        return replace(graph, outputs=tuple(specs))

    def enlarge(self, scale: int) -> StageGraph:
        layers = _PartLayers(key=scale_key(scale))
        return self._graph("enlarge", lambda image: self.network.enlarge(_unit(image), scale), [], layers)

    def encoder(self, layers: _PartLayers) -> StageGraph:
        vae, pad = self.network.vae, self.network.pad
        encoder = derive_coder(vae.encoder, self.dtype, layers.make)
        quantise = derive(vae.quant_conv or nn.Identity(), self.dtype, layers.make)  # some VAEs have none
        scale, channels = vae.config.scaling_factor, vae.config.latent_channels

        def compute(enlarged: Tensor) -> Tensor:
            moments = quantise(encoder(pad(enlarged).to(self.dtype)))
            latent: Tensor = moments[:, :channels].float() * scale  # the mode of the posterior
            return latent

        return self._graph("vae_encoder", compute, [encoder, quantise], layers, ["enlarged"])

    def unet(self, layers: _PartLayers) -> StageGraph:
        count = 2 if self.guided else 1
        by_image = None if self.traits.one_degradation else layers.slot
        unet = self._one_step_unet(layers.make, by_image, count)

        def compute(latent: Tensor, guidance: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
            noise = unet(latent, prompts).float()
            if guidance is not None:
                positive, negative = noise.chunk(2)
                noise = guide(positive, negative, guidance)
            return self.network.one_step.denoise(latent, noise)

        extra = ["guidance"] if self.guided else []
        return self._graph("unet", compute, [unet], layers, extra, {"prompts": count})

    def unet_of_pass(self, name: PassName) -> StageGraph:
        network, slot = cast(PiSASR, self.network), ModulationSlot()
        layers = _PartLayers(pass_layers(network, name, slot, self.dtype), name, slot)
        unet = self._one_step_unet(layers.make, slot, 1)
        compute, extra = x0_of_pass(network, name, slot, unet), ["pixel_scale", "semantic_scale"]
        return self._graph("unet", compute, [unet], layers, extra, {"prompts": 1})

    @torch.no_grad()
    def _one_step_unet(self, make: LayerMaker, by_image: ModulationSlot | None, count: int) -> OneStepUNet:
        """The UNet for `count` prompts: those of the network, where they are folded."""
        network = self.network
        prompts = None if self.given_prompts else network.encode_prompts(network.prompts[:count])
        any_size = bool(network.multiple % (network.vae_factor * unet_factor(network.unet)))
        return OneStepUNet(
            network.unet, network.one_step.timestep, make, by_image, self.dtype, prompts, any_size
        )

    def decoder(self, layers: _PartLayers) -> StageGraph:
        vae = self.network.vae
        decoder = derive_coder(vae.decoder, self.dtype, layers.make)
        quantise = derive(vae.post_quant_conv or nn.Identity(), self.dtype, layers.make)
        scale = vae.config.scaling_factor

        def compute(x0: Tensor) -> tuple[Tensor, Tensor]:
            decoded: Tensor = decoder(quantise((x0 / scale).to(self.dtype))).float()
            # The mean deviation from the mean shows what clamping would hide: NaN, infinity, one flat colour.
            contrast = (decoded - decoded.mean((1, 2, 3), keepdim=True)).abs().mean((1, 2, 3))
            return decoded.clamp(-1, 1), contrast

        return self._graph("vae_decoder", compute, [decoder, quantise], layers, ["contrast"])

    def finish(self, fix: ColorFix) -> StageGraph:
        def compute(decoded: Tensor, enlarged: Tensor) -> Tensor:
            levels = (self.network.finish(decoded, enlarged, fix) * 255).round()
            return levels.permute(0, 2, 3, 1).to(torch.uint8)  # TensorRT takes uint8 only next to a Cast

        return self._graph(finish_of(fix), compute, [], extra=["enlarged"])

    def text_encoder(self) -> StageGraph:
        encoder = self.network.text_encoder
        return self._graph("text_encoder", lambda tokens: encoder(tokens)[0], [encoder])

    def _graph(
        self,
        stage: str,
        compute: Callable[..., Any],
        parts: Sequence[nn.Module],
        layers: _PartLayers = _NO_LAYERS,
        extra: Sequence[str] = (),
        sizes: Mapping[int | str, int] = _NOTHING,
    ) -> StageGraph:
        """Bind a computation to the stage's tensors: those it must have, `extra`, prompts, and modulation."""
        kind, optional = STAGES[stage], {*extra, *self.given_prompts, layers.modulation}
        may_read = (*kind.reads_one_of, *kind.may_read)
        read = (*kind.reads, *(name for name in may_read if name in optional))
        given = (*kind.gives, *(name for name in kind.may_give if name in optional))
        one: Mapping[int | str, int] = {"batch": 1} if self.traits.one_degradation else {}
        inputs = tuple(
            self._spec(name, {**sizes, **one} if name in self.modulations else sizes) for name in read
        )
        inputs += layers.weights
        outputs = tuple(self._spec(name, sizes) for name in given)
        module = _Stage([spec.name for spec in inputs], compute, parts, layers).eval().requires_grad_(False)
        multiple = self.network.multiple // self.network.vae_factor
        return StageGraph(stage, layers.key, module, inputs, outputs, multiple)

    def _spec(self, name: str, sizes: Mapping[int | str, int]) -> TensorSpec:
        known = {**self.sizes, **sizes}
        shape = tuple(known.get(axis, axis) for axis in TENSORS[name].axes)
        return TensorSpec(name=name, dtype=TENSORS[name].dtype, shape=shape)


def _unit(image: Tensor) -> Tensor:
    """Uint8 NHWC to float32 NCHW in [0, 1]; the cast comes first, where TensorRT takes uint8."""
    return image.to(torch.float32).permute(0, 3, 1, 2) / 255


def _example(spec: TensorSpec, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    if spec.dtype == "uint8":
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    if spec.dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    if spec.dtype == "float16":  # weights, laid out as `frozen` lays out others
        return frozen(torch.rand(shape, generator=generator), torch.float16)
    return torch.rand(shape, generator=generator) - (0.5 if spec.name in ("latent", "x0", "decoded") else 0.0)
