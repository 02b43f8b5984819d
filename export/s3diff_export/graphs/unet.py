"""The UNet at its one timestep: time embedding and prompts folded, the prompts' common work done once."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from s3diff_export.graphs.attention import GatedGELU, PlainAttention
from s3diff_export.graphs.derive import LayerMaker, derive, frozen
from s3diff_runtime.errors import RequestError
from s3diff_training.network.lora import ModulatedLoRA, ModulationSlot, lora_layers

_TIME_PATH = "the UNet's time path has LoRA or scales activations; it cannot be folded away"
_FOREIGN = (
    *("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"),
    *("time_embedding_act_fn", "center_input_sample"),
    *("only_cross_attention", "mid_block_only_cross_attention", "dual_cross_attention"),
)
"""Options of a diffusers UNet that change what is computed in ways that `OneStepUNet` does not follow."""
_PARTS = ("conv_in", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")


class OneStepUNet(nn.Module):
    """A diffusers UNet evaluated at one timestep for P prompts: latent `[N, c, h, w]` to ε `[P N, c, h, w]`.

    What the prompts have in common, everything up to the first cross-attention, runs on N images; from there
    on the batch is P N: all images under the first prompt, then all under the second. The original is left as
    it is.

    Args:
        unet: of the network, with or without degradation-guided LoRA.
        timestep: the only one.
        make_layer: for the LoRA layers.
        slot: that those layers read, if its matrices belong to images (`[N, blocks, r, r]` when this is
            called) and must be repeated where the batch splits.
        dtype: of weights and activations.
        prompts: constant embeddings `[P, T, W]`, or None to be given on each call.
        any_size: whether latents come with sides that the UNet cannot halve at every level; the up blocks
            then meet the sizes of the down blocks, as diffusers has it.

    Raises:
        RequestError: for a UNet that is not of Stable Diffusion's kind.
    """

    # diffusers' blocks have no types that a checker could follow
    conv_in: Any
    down_blocks: Any
    mid_block: Any
    up_blocks: Any
    conv_norm_out: Any
    conv_out: Any
    prompts: Tensor | None

    def __init__(
        self,
        unet: UNet2DConditionModel,
        timestep: int,
        make_layer: LayerMaker,
        slot: ModulationSlot | None,
        dtype: torch.dtype,
        prompts: Tensor | None,
        any_size: bool = False,
    ) -> None:
        super().__init__()
        _require_stable_diffusion(unet)
        emb = unet.time_embedding(unet.time_proj(torch.tensor([timestep])).to(unet.dtype))

        for name in _PARTS:
            twin = derive(getattr(unet, name), dtype, make_layer)
            _fold_time(getattr(unet, name), twin, emb, dtype)
            self.add_module(name, twin)
        self.dtype, self.any_size = dtype, any_size
        self.register_buffer("prompts", None if prompts is None else prompts.to(dtype))
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        attentive = [block for block in blocks if getattr(block, "has_cross_attention", False)]
        for transformer in (t for block in attentive for t in block.attentions):
            for inner in transformer.transformer_blocks:
                inner._modules["attn1"] = PlainAttention(inner.attn1)
                inner._modules["attn2"] = PlainAttention(inner.attn2, self.prompts)
                inner.ff.net._modules["0"] = GatedGELU(inner.ff.net[0])
        self.splitting = attentive[0]
        self.splitting.attentions[0] = Widening(self.splitting.attentions[0], slot)

    def forward(self, latent: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Latent `[N, c, h, w]` to ε `[P N, c, h, w]`; `prompts` `[P, T, W]` where they are not constant."""
        context = cast(Tensor, self.prompts) if prompts is None else prompts.to(self.dtype)
        x = self.conv_in(latent.to(self.dtype))
        skips = [x]
        for block in (*self.down_blocks, self.mid_block):
            if block is self.splitting:
                skips = [torch.cat([skip] * int(context.shape[0])) for skip in skips]
            if block is self.mid_block:
                x = block(x, **_conditions(block, context))
            else:
                x, states = block(x, **_conditions(block, context))
                skips += states
        for block in self.up_blocks:
            count = len(block.resnets)
            joined, skips = tuple(skips[-count:]), skips[:-count]
            size = {"upsample_size": skips[-1].shape[2:]} if skips and self.any_size else {}
            x = block(x, res_hidden_states_tuple=joined, **size, **_conditions(block, context))
        noise: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return noise


def unet_factor(unet: UNet2DConditionModel) -> int:
    """What the sides of a latent are multiples of where every level can halve them."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


class Widening(nn.Module):
    """The first transformer: takes N images and gives P N, splitting at its first cross-attention."""

    def __init__(self, transformer: Transformer2DModel, slot: ModulationSlot | None) -> None:
        super().__init__()
        self.transformer, self.slot = transformer, slot

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: object) -> tuple[Tensor]:
        """`[N, C, H, W]` and prompts `[P, T, W]` to `[P N, C, H, W]`, as diffusers calls it."""
        prompts, (height, width) = int(encoder_hidden_states.shape[0]), hidden_states.shape[2:]
        tokens, inner = self.transformer._operate_on_continuous_inputs(hidden_states)
        first, *others = self.transformer.transformer_blocks
        tokens = tokens + first.attn1(first.norm1(tokens))
        tokens = torch.cat([tokens] * prompts)
        if self.slot is not None and self.slot.value is not None:
            self.slot.value = torch.cat([self.slot.value] * prompts)
        tokens = tokens + first.attn2(first.norm2(tokens), encoder_hidden_states)
        tokens = tokens + first.ff(first.norm3(tokens))
        for block in others:
            tokens = block(tokens, encoder_hidden_states=encoder_hidden_states)
        output = self.transformer._get_output_for_continuous_inputs(
            tokens, torch.cat([hidden_states] * prompts), tokens.shape[0], height, width, inner
        )
        return (output,)


def _conditions(block: nn.Module, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}


def _fold_time(original: nn.Module, twin: nn.Module, emb: Tensor, dtype: torch.dtype) -> None:
    """Add what the time embedding adds to every residual block to the bias of its first convolution."""
    twins = dict(twin.named_modules())
    for name, block in original.named_modules():
        projection = getattr(block, "time_emb_proj", None)
        if projection is None:
            continue
        if block.time_embedding_norm != "default" or isinstance(projection, ModulatedLoRA):
            raise RequestError(_TIME_PATH)
        conv = block.conv1.base_layer if isinstance(block.conv1, ModulatedLoRA) else block.conv1
        own = twins[name].conv1
        own = getattr(own, "base_layer", own)
        shift = projection(F.silu(emb))[0]
        own._parameters["bias"] = frozen(shift if conv.bias is None else conv.bias + shift, dtype)
        twins[name].time_emb_proj = None


def _require_stable_diffusion(unet: UNet2DConditionModel) -> None:
    config = unet.config
    unusual = [name for name in _FOREIGN if config.get(name)]
    if config.act_fn != "silu":
        unusual.append(f"act_fn {config.act_fn}")
    if unet.mid_block is None:
        unusual.append("no middle block")
    attentive = [block for block in unet.modules() if getattr(block, "has_cross_attention", False)]
    if any(not isinstance(part, Transformer2DModel) for block in attentive for part in block.attentions):
        unusual.append("cross-attention outside of transformers")
    if not any(block in attentive for block in (*unet.down_blocks, unet.mid_block)):
        unusual.append("no cross-attention before the up blocks")
    if unusual:
        raise RequestError(
            f"this UNet is not of Stable Diffusion's kind ({', '.join(unusual)}); expected SD-Turbo's layout"
        )
    if lora_layers(unet.time_embedding):
        raise RequestError(_TIME_PATH)
