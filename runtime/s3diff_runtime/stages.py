"""The stages of the network in their order, and the tensors that they exchange. The one table of both.

The manifest is checked against it, the exporter makes graphs by it, and whatever runs, verifies or counts the
stages follows its order. What the stages compute is in docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from s3diff_runtime.vocabulary import COLOR_FIXES, ColorFix

Dtype = Literal["uint8", "int64", "float16", "float32"]
_LATENT = ("batch", "latent_channels", "latent_height", "latent_width")


@dataclass(frozen=True)
class TensorKind:
    """A tensor that goes from the host to a stage, between stages, or back.

    `axes` are sizes, or names: `batch`, `prompts` and those of sides are free in a graph, others are facts of
    the network (`latent_channels`, `vae_rank`).
    """

    dtype: Dtype
    axes: tuple[int | str, ...]
    from_host: bool = False
    """Whether no stage makes it."""
    by_layer: bool = False
    """Whether there is one for every layer with LoRA, see `layer_tensor`, of the layer's own shape and of the
    graphs' precision."""


TENSORS: Mapping[str, TensorKind] = MappingProxyType(
    {
        "image": TensorKind("uint8", ("batch", "height", "width", 3), from_host=True),
        "tokens": TensorKind("int64", ("prompts", "tokens"), from_host=True),
        "guidance": TensorKind("float32", (), from_host=True),
        "pixel_scale": TensorKind("float32", ("batch",), from_host=True),
        "semantic_scale": TensorKind("float32", ("batch",), from_host=True),
        "prompts": TensorKind("float32", ("prompts", "tokens", "text_width")),
        "enlarged": TensorKind("float32", ("batch", 3, "upscaled_height", "upscaled_width")),
        "degradation": TensorKind("float32", ("batch", 2)),
        "vae_modulation": TensorKind("float32", ("batch", "vae_blocks", "vae_rank", "vae_rank")),
        "unet_modulation": TensorKind("float32", ("batch", "unet_blocks", "unet_rank", "unet_rank")),
        "vae_weights": TensorKind("float32", (), by_layer=True),
        "unet_weights": TensorKind("float32", (), by_layer=True),
        "latent": TensorKind("float32", _LATENT),
        "x0": TensorKind("float32", _LATENT),
        "decoded": TensorKind("float32", ("batch", 3, "decoded_height", "decoded_width")),
        "contrast": TensorKind("float32", ("batch",)),
        "upscaled": TensorKind("uint8", ("batch", "upscaled_height", "upscaled_width", 3)),
    }
)


@dataclass(frozen=True)
class StageKind:
    """One step of the network: what it must read and give, and what it may besides."""

    name: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    reads_one_of: tuple[str, ...] = ()
    may_read: tuple[str, ...] = ()
    may_give: tuple[str, ...] = ()
    optional: bool = False
    """Whether bundles can do without it: for their family, prompts, LoRA mode, or colour corrections."""
    on_demand: bool = False
    """Whether only some settings need it, so that it is opened when they are first asked for."""
    for_picture: bool = True
    """Whether it runs for every batch of pictures; else it runs for prompts, or for the scores."""
    color_fix: ColorFix | None = None
    """The correction that it applies; None for a stage that serves all of them."""
    by_scale: bool = False
    """Whether it has a graph for each scale, see `scale_key`."""

    @property
    def gives_weights(self) -> bool:
        """Whether it computes what other stages take for the weights of their layers."""
        return any(TENSORS[name].by_layer for name in self.gives)


STAGES: Mapping[str, StageKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            StageKind(
                "text_encoder", ("tokens",), ("prompts",), optional=True, on_demand=True, for_picture=False
            ),
            StageKind("estimator", ("image",), ("degradation",), optional=True, for_picture=False),
            StageKind(
                "modulation",
                ("degradation",),
                (),
                may_give=("vae_modulation", "unet_modulation"),
                optional=True,
            ),
            *(
                StageKind(f"{part}_weights", (f"{part}_modulation",), (f"{part}_weights",), optional=True)
                for part in ("vae", "unet")
            ),
            StageKind("enlarge", ("image",), ("enlarged",), optional=True, by_scale=True),
            # Stages that read `image` enlarge it themselves, by 4: those of bundles from before `enlarge`.
            StageKind(
                "vae_encoder", (), ("latent",), ("enlarged", "image"), ("vae_modulation", "vae_weights")
            ),
            StageKind(
                "unet",
                ("latent",),
                ("x0",),
                may_read=(
                    "guidance",
                    "unet_modulation",
                    "unet_weights",
                    "pixel_scale",
                    "semantic_scale",
                    "prompts",
                ),
            ),
            StageKind(
                "vae_decoder",
                ("x0",),
                ("decoded",),
                may_read=("vae_modulation", "vae_weights"),
                may_give=("contrast",),
            ),
            *(
                StageKind(
                    f"finish_{fix}",
                    ("decoded",),
                    ("upscaled",),
                    ("enlarged", "image"),
                    optional=True,
                    on_demand=True,
                    color_fix=fix,
                )
                for fix in COLOR_FIXES
            ),
        )
    }
)
"""In the order in which they feed each other."""


def finish_of(color_fix: str) -> str:
    """Name of the stage that applies a colour correction."""
    return next(name for name, kind in STAGES.items() if kind.color_fix == color_fix)


def picture_stages(color_fix: str) -> tuple[str, ...]:
    """The stages that a batch of pictures may go through, in order."""
    return tuple(
        name for name, kind in STAGES.items() if kind.for_picture and kind.color_fix in (None, color_fix)
    )


def layer_tensor(kind: str, layer: str) -> str:
    """Name of the tensor of a kind that is `by_layer` for a layer, by its path in the VAE or the UNet."""
    return f"{kind}.{layer}"


def kind_of(tensor: str) -> str:
    """Under which name `TENSORS` has a tensor, if it has it."""
    kind = tensor.partition(".")[0]
    return kind if kind in TENSORS and TENSORS[kind].by_layer else tensor


def scale_key(scale: int) -> str:
    """Under which name a stage that is `by_scale` keeps the graph of a scale."""
    return f"x{scale}"
