"""Writes a stage as an ONNX file with its weights beside it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.export import Dim

from s3diff_export.errors import BuildError
from s3diff_export.graphs.stages import StageGraph

OPSET = 18
LARGEST_BATCH = 63
"""Diffusers takes another path from 64 images on, and a graph holds one path."""
LARGEST_SIDE = 16384
"""Of any image, in pixels: a bound that the tracer wants, not a limit of the network."""


def export_onnx(graph: StageGraph, path: Path) -> None:
    """Trace a stage, simplify it, check it, and write `path` with its weights in `path` + `.data`.

    Constants are folded and dead nodes removed by onnxscript's optimiser.

    Args:
        graph: the stage.
        path: ends in `.onnx`; its folder exists.

    Raises:
        BuildError: when the stage cannot be traced or the result is not valid ONNX.
    """
    sizes: dict[str, Any] = {}
    shapes = tuple(
        {axis: _size(name, graph.multiple, sizes) for axis, name in enumerate(spec.shape) if isinstance(name, str)}
        for spec in graph.inputs
    )
    try:
        with _quietly(), torch.no_grad():
            program = torch.onnx.export(
                graph.module,
                graph.example(),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(shapes,),
                input_names=[spec.name for spec in graph.inputs],
                output_names=[spec.name for spec in graph.outputs],
                optimize=True,
                verbose=False,
            )
            if program is None:
                raise BuildError(f"stage {graph.stage} was not exported: torch.onnx gave no program")
            program.save(str(path), external_data=True)
        onnx.checker.check_model(str(path), full_check=False)
    except BuildError:
        raise
    except Exception as error:  # torch.export and its passes raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BuildError(
            f"stage {graph.stage} cannot be exported to ONNX: {reason}; this is a model that the exporter does "
            "not know, or other versions of torch and onnxscript than constraints.txt names"
        ) from error


def _size(name: str, multiple: int, sizes: dict[str, Any]) -> Any:
    """The free size of that name; latents come in multiples of what the UNet halves."""
    if name not in sizes:
        if name == "batch":
            sizes[name] = Dim(name, min=1, max=LARGEST_BATCH)
        elif name.startswith("latent_"):
            sizes[name] = multiple * Dim(f"{name}_cells", min=1, max=LARGEST_SIDE // multiple)
        else:
            sizes[name] = Dim(name, min=1 if name == "prompts" else 4, max=LARGEST_SIDE)
    return sizes[name]


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
