"""ONNX Runtime's operators of the CUDA form, computed by their definitions on the CPU.

Sources: onnxruntime docs/ContribOperators.md. All compute in float32 and round to the type of their input.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from s3diff_export.graphs.cuda_form import DOMAIN

Array = NDArray[Any]


def _wide(array: Array) -> torch.Tensor:
    return torch.tensor(array).float()


class _Operator(OpRun):
    op_domain = DOMAIN


def _convolved(
    x: torch.Tensor,
    kernel: torch.Tensor,
    bias: Array | None,
    attributes: dict[str, Any],
) -> torch.Tensor:
    """`[N, C, H, W]` by `[O, C, h, w]`."""
    top, left, *others = attributes["pads"]
    assert [top, left] == others
    shift = None if bias is None else _wide(bias)
    strides, dilations = attributes["strides"], attributes["dilations"]
    return F.conv2d(x, kernel, shift, strides, (top, left), dilations, attributes["group"])


class NhwcConv(_Operator):
    def _run(
        self,
        x: Array,
        kernel: Array,
        bias: Array | None = None,
        **attributes: Any,  # noqa: ANN401
    ) -> tuple[Array]:
        first, turned = (_wide(each).permute(0, 3, 1, 2) for each in (x, kernel))
        found = _convolved(first, turned, bias, attributes)
        return (found.permute(0, 2, 3, 1).numpy().astype(x.dtype),)


class GroupNorm(_Operator):
    def _run(
        self,
        x: Array,
        gamma: Array,
        beta: Array,
        **attributes: Any,  # noqa: ANN401
    ) -> tuple[Array]:
        assert gamma.dtype == beta.dtype == np.float32  # the CUDA kernel takes no other
        assert attributes["channels_last"] == 1
        first = _wide(x).permute(0, 3, 1, 2)
        found = F.group_norm(first, attributes["groups"], _wide(gamma), _wide(beta), attributes["epsilon"])
        if attributes["activation"]:
            found = F.silu(found)
        return (found.permute(0, 2, 3, 1).numpy().astype(x.dtype),)


class MultiHeadAttention(_Operator):
    def _run(
        self,
        queries: Array,
        keys: Array,
        values: Array,
        **attributes: Any,  # noqa: ANN401
    ) -> tuple[Array]:
        q, k, v = (
            _wide(each).unflatten(2, (attributes["num_heads"], -1)).transpose(1, 2)
            for each in (queries, keys, values)
        )
        assert q.shape[0] == k.shape[0]
        found = F.scaled_dot_product_attention(q, k, v, scale=attributes["scale"])
        return (found.transpose(1, 2).flatten(2).numpy().astype(queries.dtype),)


class BiasSplitGelu(_Operator):
    def _run(self, x: Array, bias: Array) -> tuple[Array]:
        values, gates = (_wide(x) + _wide(bias)).chunk(2, -1)
        return ((values * F.gelu(gates)).numpy().astype(x.dtype),)


class Conv(OpRun):
    """The standard one, which is slow in onnx's own evaluator."""

    def _run(
        self,
        x: Array,
        kernel: Array,
        bias: Array | None = None,
        **attributes: Any,  # noqa: ANN401
    ) -> tuple[Array]:
        return (_convolved(_wide(x), _wide(kernel), bias, attributes).numpy().astype(x.dtype),)


def evaluator(path: str) -> ReferenceEvaluator:
    """Runs a graph of the CUDA form."""
    operators = [NhwcConv, GroupNorm, MultiHeadAttention, BiasSplitGelu, Conv]
    return ReferenceEvaluator(path, new_ops=operators)
