"""Attention as engines recognise it: scale folded into the queries, heads of a constant number.

Between the projections nothing is left but reshapes by constants and MatMul, Softmax, MatMul: what TensorRT
fuses into one kernel, and what the form for ONNX Runtime's CUDA operators is made from.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from torch import Tensor, Value, nn

from s3diff_export.graphs.derive import LayerMaker, derive, frozen, shallow
from s3diff_export.graphs.fused import GivenWeight
from s3diff_runtime.errors import RequestError
from s3diff_training.network.lora import ModulatedLoRA

if TYPE_CHECKING:
    from torch.onnx._internal.torchscript_exporter.jit_utils import GraphContext


class PlainAttention(nn.Module):
    """Attention of tokens `[N, T, C]` to themselves, or of P N images to P prompts.

    Keys and values of prompts are computed once per prompt, or folded. Under `dynamic` LoRA they differ by
    image too and are computed for each.

    Args:
        attention: of diffusers, derived for the graph; its layers are taken over.
        prompts: constant embeddings `[P, T, W]`, which plain keys and values fold; else None.

    Raises:
        RequestError: for an attention that does more than Stable Diffusion's.
    """

    # layers of any LoRA mode
    to_k: Any
    to_v: Any
    keys: Tensor
    values: Tensor

    def __init__(self, attention: Attention, prompts: Tensor | None = None) -> None:
        super().__init__()
        if attention.norm_q is not None or attention.norm_k is not None or attention.norm_cross:
            raise RequestError("this model normalises queries or keys; expected Stable Diffusion's attention")
        self.heads = (attention.heads, _width(attention.to_q) // attention.heads)
        self.to_q, self.to_out = _scaled(attention.to_q, attention.scale), attention.to_out[0]
        plain = all(isinstance(layer, nn.Linear) for layer in (attention.to_k, attention.to_v))
        self.per_image = any(isinstance(part, ModulatedLoRA) for part in (attention.to_k, attention.to_v))
        self.folded = plain and prompts is not None
        if self.folded:
            with torch.no_grad():
                self.register_buffer("keys", attention.to_k(prompts))
                self.register_buffer("values", attention.to_v(prompts))
        else:
            self.to_k, self.to_v = attention.to_k, attention.to_v

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        """`[P N, T', C]` and prompts `[P, T, W]`, or None for attention to itself, to `[P N, T', C]`."""
        queries = self.to_q(hidden_states)
        if encoder_hidden_states is None:
            keys, values = self.to_k(hidden_states), self.to_v(hidden_states)
            attended = _Attend.apply(queries, keys, values, *self.heads, 0)
        elif self.per_image:
            context = _for_images(encoder_hidden_states, hidden_states.shape[0])
            attended = _Attend.apply(queries, self.to_k(context), self.to_v(context), *self.heads, 0)
        else:
            context, prompts = encoder_hidden_states, int(encoder_hidden_states.shape[0])
            keys = self.keys if self.folded else self.to_k(context)
            values = self.values if self.folded else self.to_v(context)
            attended = _Attend.apply(queries, keys, values, *self.heads, prompts).view(queries.shape)
        output: Tensor = self.to_out(attended)
        return output


class GatedGELU(nn.Module):
    """The first layer of a transformer's feed-forward part: half of its values, gated by the other half."""

    proj: Any

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        self.proj = layer.proj
        self.width = _width(layer.proj) // 2

    def forward(self, hidden_states: Tensor) -> Tensor:
        """`[N, T, C]` to `[N, T, C']`."""
        values, gates = self.proj(hidden_states).split([self.width, self.width], -1)
        gated: Tensor = values * F.gelu(gates)
        return gated


class SpatialAttention(nn.Module):
    """The attention of a VAE's middle block: normalises `[N, C, H, W]`, attends, and adds the result."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        if attention.spatial_norm is not None or attention.group_norm is None:
            raise RequestError(
                "this VAE's attention has no group norm of its own; expected SD-Turbo's layout"
            )
        self.norm, self.attend = attention.group_norm, PlainAttention(attention)
        self.residual, self.rescale = attention.residual_connection, attention.rescale_output_factor

    def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
        """`[N, C, H, W]` to `[N, C, H, W]`."""
        tokens = self.norm(hidden_states).permute(0, 2, 3, 1)
        attended = self.attend(tokens.flatten(1, 2)).view(tokens.shape).permute(0, 3, 1, 2)
        if self.residual:
            attended = attended + hidden_states
        return attended if self.rescale == 1 else attended / self.rescale


def derive_coder(coder: nn.Module, dtype: torch.dtype, make_layer: LayerMaker) -> nn.Module:
    """The twin of a VAE's encoder or decoder, see `derive`, with this attention in its middle block."""
    twin: Any = derive(coder, dtype, make_layer)
    attentions = twin.mid_block.attentions
    for name, attention in attentions.named_children():
        attentions._modules[name] = SpatialAttention(attention)
    return twin


class _Attend(torch.autograd.Function):
    """`softmax(Q K^T) V` by heads: `[N, T, C]` and twice `[N, S, C]` to `[N, T, C]`.

    With `prompts`, keys and values are `[P, S, C]`, the queries' P N images count as P long ones, and the
    result is `[P, N T, C]`. In a graph the sides that it keeps are zeros of Reshape: no Shape is computed.
    """

    @staticmethod
    def forward(
        _: Any,  # noqa: ANN401
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        heads: int,
        width: int,
        prompts: int,
    ) -> Tensor:
        if prompts:
            queries = queries.reshape(prompts, -1, queries.shape[2])
        q, k, v = (part.unflatten(2, (heads, width)).transpose(1, 2) for part in (queries, keys, values))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(
        graph: "GraphContext",
        queries: Value,
        keys: Value,
        values: Value,
        heads: int,
        width: int,
        prompts: int,
    ) -> Value:
        def split(tokens: Value, order: list[int], first: int = 0) -> Value:
            shape = graph.op("Constant", value_t=torch.tensor([first, -1, heads, width]))
            return graph.op("Transpose", graph.op("Reshape", tokens, shape), perm_i=order)

        by_head = split(queries, [0, 2, 1, 3], prompts)
        scores = graph.op("MatMul", by_head, split(keys, [0, 2, 3, 1]))
        attended = graph.op("MatMul", graph.op("Softmax", scores, axis_i=-1), split(values, [0, 2, 1, 3]))
        shape = graph.op("Constant", value_t=torch.tensor([0, -1, heads * width]))
        tokens = graph.op("Reshape", graph.op("Transpose", attended, perm_i=[0, 2, 1, 3]), shape)
        typed: Value = tokens.setType(queries.type())
        return typed


def query_scales(module: nn.Module) -> dict[ModulatedLoRA, float]:
    """What the weights of the LoRA layers that project queries are multiplied by in a graph."""
    attentions = [each for each in module.modules() if isinstance(each, Attention)]
    return {each.to_q: each.scale for each in attentions if isinstance(each.to_q, ModulatedLoRA)}


def _scaled(layer: nn.Module, factor: float) -> nn.Module:
    """A twin of a layer of any LoRA mode whose output is `factor` times as large.

    Powers of two, as for heads of 64, are exact in every dtype.
    """
    twin = shallow(layer)
    if isinstance(layer, ModulatedLoRA):
        twin._modules |= {name: _scaled(getattr(layer, name), factor) for name in ("base_layer", "lora_B")}
        return twin
    for name in ("weight", "bias"):  # a weight that is given comes scaled, see `query_scales`
        tensor = getattr(layer, name, None)
        if tensor is not None:
            twin._parameters[name] = frozen(tensor * factor, tensor.dtype)
    return twin


def _width(layer: nn.Module) -> int:
    """How many channels a linear layer of any LoRA mode gives."""
    if isinstance(layer, GivenWeight):
        return layer.width
    weight: Any = getattr(layer, "base_layer", layer).weight
    return int(weight.shape[0])


def _for_images(prompts: Tensor, count: int) -> Tensor:
    """`[P, T, W]` to `[P N, T, W]`, every prompt N times in a row; `count` is P N."""
    return prompts[:, None].expand(-1, count // prompts.shape[0], -1, -1).flatten(0, 1)
