"""A bundle of a few kilobytes whose graphs have the stages of a real one and an output that one can foretell.

The "network" enlarges by repeating pixels. What conditions a real network shifts the brightness here, so that
a test sees whether the runtime fed it: see `expected_shift`. Colour corrections are told apart by eye:

- `none` gives the enlarged, shifted picture;
- `wavelet` gives it without the shift (each channel has the mean of the input);
- `adain` gives the negative of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from s3diff_runtime.bundle.integrity import sha256
from s3diff_runtime.bundle.manifest import SHARED, Bin, Guidance, Manifest, Prompts, Source, Stage
from s3diff_runtime.bundle.records import FileRecord, TensorSpec
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.vocabulary import ColorFix

MULTIPLE = 16
"""High-resolution pixels that the encoder pads to: 4 low-resolution ones."""
SHIFT = 0.1875
"""How far degradations move the brightness, of a range of 1: `SHIFT * (noise + 2 * blur)`."""
GUIDANCE_SHIFT = 0.125
"""How far guidance moves it, for every 1 of scale above 1."""
BINS = tuple(Bin(name=f"n{n}-b{b}", noise=n / 2, blur=b / 2) for n in (0, 1, 2) for b in (0, 1, 2))
TOKENS = 8
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "bright": 2, "dark": 3}
PROMPT_SHIFTS = {"": 0.0, "bright": 0.125, "dark": 0.1875}
"""Brightness that a prompt of one word adds; the negative prompt takes off as much as it would add."""

_DTYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}
_SHARES, _RANKS = {"vae": 1 / 3, "unet": 2 / 3}, {"vae": 2, "unet": 3}
"""Of the shift, and of the modulation, by the part of the network."""
Axes = tuple[Literal["noise", "blur"], Literal["noise", "blur"]]


def expected_shift(
    noise: float, blur: float, guidance: float = 1.0, positive: str = "", negative: str = ""
) -> float:
    """What `color_fix="none"` adds to the enlarged picture, in a range of 1, before clamping."""
    prompts = PROMPT_SHIFTS[positive] - PROMPT_SHIFTS[negative]
    return SHIFT * (noise + 2 * blur) + GUIDANCE_SHIFT * (guidance - 1) + prompts


def estimate_of(pixels: np.ndarray, axes: Axes = ("noise", "blur")) -> dict[str, float]:
    """What the estimator finds: the means of red and green are the first and the second axis."""
    means = pixels.reshape(-1, 3).mean(0) / 255
    return dict(zip(axes, map(float, means), strict=False))


def dark_noise(height: int, width: int, seed: int = 0, brightest: int = 80) -> np.ndarray:
    """Noise `[height, width, 3]` uint8, dark enough that no shift of the fake network clips it."""
    return np.random.default_rng(seed).integers(0, brightest, (height, width, 3), dtype=np.uint8)


def enlarged(pixels: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """`[H, W, 3]` to `[4H, 4W, 3]` uint8: every pixel repeated, brightness shifted."""
    shifted = np.rint(np.clip(pixels / 255.0 + shift, 0, 1) * 255).astype(np.uint8)
    return shifted.repeat(4, axis=0).repeat(4, axis=1)


def write_fake_bundle(
    folder: Path,
    lora_mode: LoraMode = "merged",
    *,
    prompts: Literal["folded", "runtime"] = "folded",
    guidance: Literal["on", "off"] = "on",
    axes: Axes = ("noise", "blur"),
    color_fixes: Sequence[ColorFix] = ("wavelet", "adain", "none"),
    bins: Sequence[Bin] = BINS,
    external_data: bool = False,
    contrast: bool = False,
    weights_apart: bool = True,
) -> Path:
    """Write a bundle into `folder` (made if missing) and return the folder.

    `axes` is the order of the estimator's outputs, and with `external_data` the weights of the UNet are
    beside its graph in `<name>.onnx.data`. With `contrast` the decoder measures that, as in bundles of today.
    Without `weights_apart`, graphs of `fused` compute their weights themselves, as in bundles of former days.
    """
    graphs = _Graphs(
        lora_mode, prompts, guidance, axes, contrast, LORA_MODES[lora_mode].gives_weights and weights_apart
    )
    used_bins = tuple(bins) if lora_mode == "merged" else ()
    stages = {}
    for name, build in graphs.builders(color_fixes).items():
        binned = bool(used_bins) and name in ("vae_encoder", "unet", "vae_decoder")
        paths = (
            {bin.name: f"onnx/bins/{bin.name}/{name}.onnx" for bin in used_bins}
            if binned
            else {SHARED: f"onnx/{name}.onnx"}
        )
        for key, path in paths.items():
            model = build(next((bin for bin in used_bins if bin.name == key), None))
            _save(model, folder / path, external_data and name == "unet")
        stages[name] = Stage(
            inputs=_specs(model.graph.input), outputs=_specs(model.graph.output), graphs=paths
        )
    if prompts == "runtime":
        (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    manifest = Manifest(
        producer="fake_bundle",
        created="2025-01-01T00:00:00+00:00",
        sources={"checkpoint": Source(name="fake", sha256="0" * 64)},
        lora_mode=lora_mode,
        precision="fp32",
        multiple=MULTIPLE,
        vae_factor=4,
        latent_channels=3,
        degradation_axes=axes,
        bins=used_bins,
        prompts=Prompts(
            mode=prompts,
            positive="bright",
            negative="dark",
            max_length=TOKENS if prompts == "runtime" else None,
            tokenizer="tokenizer.json" if prompts == "runtime" else None,
        ),
        guidance=Guidance(mode=guidance, default=1.0),
        color_fixes=tuple(color_fixes),
        stages=stages,
        files=dict(file_records(folder)),
    )
    manifest.write(folder)
    return folder


def file_records(folder: Path) -> Iterator[tuple[str, FileRecord]]:
    """Records of all files in `folder` but the manifest, sorted by name."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "manifest.json":
            record = FileRecord(sha256=sha256(path), size=path.stat().st_size)
            yield path.relative_to(folder).as_posix(), record


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Let `edit` change the manifest's JSON in place, unchecked."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# --- the graphs -----------------------------------------------------------------------------------


class _Builder:
    """Collects the nodes of one graph; `node` returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        node = helper.make_node(operator, list(inputs), [output])
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        self.nodes.append(node)
        return output

    def constant(self, value: ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, value: str, *others: str, output: str = "") -> str:
        for other in others:
            value = self.node("Add", value, other)
        return self.node("Identity", value, output=output) if output else value

    def mean(self, value: str, *axes: int) -> str:
        return self.node("ReduceMean", value, self.constant(axes, np.int64), keepdims=1)

    def unit_image(self, image: str) -> str:
        """uint8 `[N, H, W, 3]` to float `[N, 3, H, W]` in [0, 1]."""
        floats = self.node("Div", self.node("Cast", image, to=TensorProto.FLOAT), self.constant(255))
        return self.node("Transpose", floats, perm=[0, 3, 1, 2])

    def model(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> onnx.ModelProto:
        def infos(tensors: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, _DTYPES[dtype], shape)
                for name, (dtype, *shape) in tensors.items()
            ]

        graph = helper.make_graph(self.nodes, "fake", infos(inputs), infos(outputs), self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        return model


@dataclass(frozen=True)
class _Graphs:
    """Builds every stage for one kind of bundle."""

    lora_mode: LoraMode
    prompts: Literal["folded", "runtime"]
    guidance: Literal["on", "off"]
    axes: Axes
    contrast: bool
    weights_apart: bool

    IMAGE = ("uint8", "N", "H", "W", 3)
    LATENT = ("float32", "N", 3, "h", "w")
    DECODED = ("float32", "N", 3, "hr_height", "hr_width")

    def builders(self, color_fixes: Sequence[ColorFix]) -> dict[str, Callable[[Bin | None], onnx.ModelProto]]:
        stages: dict[str, Callable[[Bin | None], onnx.ModelProto]] = {"estimator": self.estimator}
        if self.lora_mode != "merged":
            stages["modulation"] = self.modulation
        if self.weights_apart:
            stages |= {f"{part}_weights": partial(self.weights, part) for part in _SHARES}
        stages |= {"vae_encoder": self.encoder, "unet": self.unet, "vae_decoder": self.decoder}
        for fix in color_fixes:
            stages[f"finish_{fix}"] = partial(self.finish, fix)
        if self.prompts == "runtime":
            stages["text_encoder"] = self.text_encoder
        return stages

    def matrices(self, rank: int) -> tuple[Any, ...]:
        """The modulation: block 0 is full of the first score, block 1 of the second."""
        return ("float32", 1 if self.lora_mode == "fused" else "N", 2, rank, rank)

    def estimator(self, _bin: Bin | None) -> onnx.ModelProto:
        b = _Builder()
        means = b.node("ReduceMean", b.unit_image("image"), b.constant([2, 3], np.int64), keepdims=0)
        first_two = [b.constant([value], np.int64) for value in (0, 2, 1)]
        b.node("Slice", means, *first_two, output="degradation")
        return b.model({"image": self.IMAGE}, {"degradation": ("float32", "N", 2)})

    def modulation(self, _bin: Bin | None) -> onnx.ModelProto:
        b = _Builder()
        scores = b.node("Unsqueeze", "degradation", b.constant([2, 3], np.int64))
        for part, rank in _RANKS.items():
            b.node("Expand", scores, b.constant([1, 2, rank, rank], np.int64), output=f"{part}_modulation")
        outputs = {"vae_modulation": ("float32", "N", 2, 2, 2), "unet_modulation": ("float32", "N", 2, 3, 3)}
        return b.model({"degradation": ("float32", "N", 2)}, outputs)

    def conditions(self, part: str, bin: Bin | None) -> dict[str, Any]:
        """What the shift of a part is made of: the bin, weights, or matrices."""
        if bin is not None:
            return {}
        if self.weights_apart:
            return {f"{part}_weights.shift": ("float32", 1, 1, 1, 1)}
        return {f"{part}_modulation": self.matrices(_RANKS[part])}

    def weights(self, part: str, _bin: Bin | None) -> onnx.ModelProto:
        b = _Builder()
        (name, spec), *_ = self.conditions(part, None).items()
        b.node("Identity", replace(self, weights_apart=False).shift(b, part, None), output=name)
        return b.model({f"{part}_modulation": self.matrices(_RANKS[part])}, {name: spec})

    def shift(self, b: _Builder, part: str, bin: Bin | None) -> str:
        """A part's share of the degradation's shift, `[N or 1, 1, 1, 1]`: of the bin, or of what is given."""
        if bin is None and self.weights_apart:
            return f"{part}_weights.shift"
        share, matrices = _SHARES[part], f"{part}_modulation"
        weights = np.array([{"noise": 1, "blur": 2}[axis] for axis in self.axes]) * SHIFT * share
        if bin is not None:
            scores = {"noise": bin.noise, "blur": bin.blur}
            return b.constant(float(weights @ [scores[axis] for axis in self.axes]))
        weighted = b.node("Mul", b.mean(matrices, 2, 3), b.constant(weights.reshape(1, 2, 1, 1)))
        return b.node("ReduceSum", weighted, b.constant([1], np.int64), keepdims=1)

    def encoder(self, bin: Bin | None) -> onnx.ModelProto:
        """The latent is the image in [0, 1], padded by its edge, plus a third of the shift."""
        b = _Builder()
        sides = b.node("Shape", "image", start=1, end=3)
        lr_multiple = b.constant([MULTIPLE // 4] * 2, np.int64)
        up = b.node("Sub", b.node("Add", sides, lr_multiple), b.constant([1, 1], np.int64))
        padded = b.node("Mul", b.node("Div", up, lr_multiple), lr_multiple)
        amounts = [b.constant([0] * 6, np.int64), b.node("Sub", padded, sides)]
        pads = b.node("Concat", *amounts, axis=0)
        image = b.node("Pad", b.unit_image("image"), pads, mode="edge")
        b.add(image, self.shift(b, "vae", bin), output="latent")
        inputs = {"image": self.IMAGE} | self.conditions("vae", bin)
        return b.model(inputs, {"latent": self.LATENT})

    def unet(self, bin: Bin | None) -> onnx.ModelProto:
        """x0 is the latent plus two thirds of the shift, plus those of guidance and prompts."""
        b = _Builder()
        inputs: dict[str, Any] = {"latent": self.LATENT}
        shifts = [self.shift(b, "unet", bin)]
        if self.guidance == "on":
            inputs["guidance"] = ("float32",)
            above_one = b.node("Sub", "guidance", b.constant(1))
            shifts.append(b.node("Mul", above_one, b.constant(GUIDANCE_SHIFT)))
        inputs |= self.conditions("unet", bin)
        if self.prompts == "runtime":
            count = 2 if self.guidance == "on" else 1
            inputs["prompts"] = ("float32", count, TOKENS, 1)
            signs = b.constant(np.array([1, -1][:count]).reshape(count, 1, 1))
            shifts.append(
                b.node(
                    "ReduceSum", b.node("Mul", "prompts", signs), b.constant([0, 1, 2], np.int64), keepdims=0
                )
            )
        b.add("latent", *shifts, output="x0")
        return b.model(inputs, {"x0": self.LATENT})

    def decoder(self, _bin: Bin | None) -> onnx.ModelProto:
        """Repeats every pixel 4 times each way; to [-1, 1], clamped."""
        b = _Builder()
        scales = b.constant([1, 1, 4, 4])
        signed = b.node("Sub", b.node("Mul", "x0", b.constant(2)), b.constant(1))
        options = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        large = b.node("Resize", signed, "", scales, **options)
        b.node("Clip", large, b.constant(-1), b.constant(1), output="decoded")
        outputs: dict[str, tuple[Any, ...]] = {"decoded": self.DECODED}
        if self.contrast:
            deviations = b.node("Abs", b.node("Sub", large, b.mean(large, 1, 2, 3)))
            b.node("ReduceMean", deviations, b.constant([1, 2, 3], np.int64), keepdims=0, output="contrast")
            outputs["contrast"] = ("float32", "N")
        return b.model({"x0": self.LATENT}, outputs)

    def finish(self, fix: ColorFix, _bin: Bin | None) -> onnx.ModelProto:
        b = _Builder()
        half = b.constant(0.5)
        unit = b.node("Mul", b.node("Add", "decoded", b.constant(1)), half)
        sides = b.node("Mul", b.node("Shape", "image", start=1, end=3), b.constant([4, 4], np.int64))
        zeros, axes = b.constant([0, 0], np.int64), b.constant([2, 3], np.int64)
        picture = b.node("Slice", unit, zeros, sides, axes)
        if fix == "wavelet":
            colours = b.mean(b.unit_image("image"), 2, 3)
            picture = b.add(b.node("Sub", picture, b.mean(picture, 2, 3)), colours)
        elif fix == "adain":
            picture = b.node("Sub", b.constant(1), picture)
        levels = b.node("Mul", b.node("Clip", picture, b.constant(0), b.constant(1)), b.constant(255))
        pixels = b.node("Transpose", b.node("Round", levels), perm=[0, 2, 3, 1])
        b.node("Cast", pixels, output="upscaled", to=TensorProto.UINT8)
        upscaled = ("uint8", "N", "height", "width", 3)
        return b.model({"decoded": self.DECODED, "image": self.IMAGE}, {"upscaled": upscaled})

    def text_encoder(self, _bin: Bin | None) -> onnx.ModelProto:
        b = _Builder()
        table = [PROMPT_SHIFTS.get(word, 0.0) for word in VOCABULARY]
        shifts = b.node("Gather", b.constant(table), "tokens")
        b.node("Unsqueeze", shifts, b.constant([2], np.int64), output="prompts")
        return b.model({"tokens": ("int64", "P", TOKENS)}, {"prompts": ("float32", "P", TOKENS, 1)})


def _specs(infos: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    names = {int(number): name for name, number in _DTYPES.items()}
    return tuple(
        TensorSpec.model_validate(
            {
                "name": info.name,
                "dtype": names[info.type.tensor_type.elem_type],
                "shape": [axis.dim_param or axis.dim_value for axis in info.type.tensor_type.shape.dim],
            }
        )
        for info in infos
    )


def _save(model: onnx.ModelProto, path: Path, external_data: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for tensor in model.graph.initializer if external_data else ():
        if tensor.data_type == TensorProto.FLOAT:  # shapes and axes must stay where inference finds them
            external_data_helper.set_external_data(tensor, f"{path.name}.data")
    onnx.save(model, path)


def _tokenizer() -> dict[str, Any]:
    """A word-level `tokenizer.json` that truncates and pads to `TOKENS`."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": {"max_length": TOKENS, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": TOKENS},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [{"id": VOCABULARY[word], "content": word, **special} for word in ("[PAD]", "[UNK]")],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
    }
