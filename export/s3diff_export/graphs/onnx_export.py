"""Writes a stage as an ONNX file with its weights beside it."""

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnx_ir.tensor_adapters import TorchTensor
from onnxscript.optimizer import fold_constants
from torch import Tensor

from s3diff_export.graphs.stages import StageGraph
from s3diff_runtime.errors import BuildError, first_line

OPSET = 18


def export_onnx(graph: StageGraph, path: Path) -> None:
    """Trace a stage, simplify it, check it, and write `path` with its weights in `path` + `.data`.

    The tracer is torch's older one. The newer, symbolic one took minutes where this takes seconds (250 s and
    9 s for a small UNet with LoRA branches), and that of torch 2.13 refuses the UNet, in which a batch of
    images becomes one of images and prompts. The older one is to go, so torch has an upper bound.

    It sees the weights as inputs; they are attached afterwards and stream from the module to disk, where the
    tracer itself would hold three copies of them (4.5 GiB of a full-size UNet in fp16). Constants are folded
    and dead nodes removed by onnxscript's optimiser.

    Raises:
        BuildError: when the stage cannot be traced or the result is not valid ONNX.
    """
    free = {
        spec.name: {axis: name for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in (*graph.inputs, *graph.outputs)
    }
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch, _quietly(), torch.no_grad():
            raw = Path(scratch) / path.name
            torch.onnx.export(
                graph.module,
                graph.example(),
                str(raw),
                dynamo=False,
                opset_version=OPSET,
                dynamic_axes=free,
                export_params=False,
                do_constant_folding=False,
                input_names=[spec.name for spec in graph.inputs],
                output_names=[spec.name for spec in graph.outputs],
            )
            model = ir.load(raw)
            _attach(model, len(graph.inputs), graph.module.state_dict())
            _simplify(model)
            ir.save(model, path, external_data=f"{path.name}.data")
        onnx.checker.check_model(str(path), full_check=False)
    except Exception as error:  # the tracer and the passes raise many kinds
        raise BuildError(
            f"stage {graph.stage} cannot be exported to ONNX: {first_line(error)}; the exporter does not "
            "know this model, or torch and onnxscript have other versions than in constraints.txt"
        ) from error


def _attach(model: ir.Model, inputs: int, weights: Mapping[str, Tensor]) -> None:
    """Turn every input after the stage's own into the weight of its name: in place, copying nothing."""
    for value in list(model.graph.inputs)[inputs:]:
        value.const_value = TorchTensor(weights[str(value.name)], name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)


def _simplify(model: ir.Model) -> None:
    """Fold constants of any size, share equal ones and equal nodes, drop dead ones: in place.

    onnxscript's `optimize` does this and matches rewrite rules, which finds nothing more here and takes a
    minute.
    """
    fold_constants(
        model,
        input_size_limit=sys.maxsize,
        output_size_limit=sys.maxsize,
        should_fold=lambda node: node.op_type == "ConstantOfShape" or None,
    )
    clean = ir.passes.Sequential(
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    clean(model)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's progress and warnings off the terminal; its errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
