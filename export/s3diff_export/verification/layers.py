"""Finds the layer where a graph leaves its truth, by comparing what every layer gives.

Without an engine the truth is the same graph computed in fp32, and ONNX Runtime computes both, rounding each
layer's result to fp16 as a GPU would. With an engine the truth is ONNX Runtime on the very same graph.

Layers of the bundle's own precision are compared. The fp32 layers of an fp16 graph add no error: they pass it
on, and the difference between the two prompts, which guidance scales, makes any error large beside it.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from polygraphy import config, constants
from polygraphy.exception import PolygraphyException
from polygraphy.logger import G_LOGGER

from s3diff_export.engines.building import require_builder
from s3diff_export.engines.options import EngineOptions
from s3diff_export.verification.cases import check_cases
from s3diff_export.verification.chain import Chain, stage_inputs
from s3diff_export.verification.parity import Gates, errors_of
from s3diff_export.verification.reference import Array
from s3diff_runtime.bundle.opening import Bundle
from s3diff_runtime.engines.flavours import FLAVOURS, BuilderFlavour
from s3diff_runtime.engines.onnx import OnnxEngine
from s3diff_runtime.engines.tensorrt.cuda import count_gpus, load_runtime
from s3diff_runtime.errors import BuildError, RequestError, S3DiffError
from s3diff_runtime.progress import Steps
from s3diff_runtime.vocabulary import Pixels

Tensors = Mapping[str, Array]
_SIDE = 64  # pixels of the picture, so that all layers of a full-size stage fit into memory
_BUDGET = 2**29  # bytes of layers in one pass
_FIRST_PASS = 32  # layers; later passes follow from their sizes
_WORST = 10
_SILENT_OPERATORS = frozenset({"Constant", "Shape", "ConstantOfShape", "Range"})


@dataclass(frozen=True)
class LayerError:
    """How far the output of one layer is from its truth."""

    name: str
    """Of the node in the graph."""
    tensor: str
    operator: str
    relative: float
    """Norm of the error over the norm of the truth."""


@dataclass(frozen=True)
class LayerReport:
    """The layers of one stage. True when all keep within the gate."""

    stage: str
    graph: str
    """Name of the bin, or `shared`."""
    found: str
    """What was compared, in words."""
    truth: str
    """With what."""
    limit: float
    count: int
    """Of layers compared: those that give numbers of the bundle's precision."""
    first: LayerError | None
    """The first in the order of the graph whose error is above the limit."""
    worst: tuple[LayerError, ...]
    """Those with the largest errors, the largest first."""

    def __bool__(self) -> bool:
        """Whether no layer is above the limit."""
        return self.first is None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "passed": bool(self)}


def compare_layers(
    bundle: Bundle,
    image: Pixels,
    gates: Gates,
    engine: BuilderFlavour | None = None,
    progress: Steps = lambda _: None,
) -> list[LayerReport]:
    """Compare the layers of every stage that computes in fp16; with an engine, of every stage.

    Each stage reads what the stages before it gave in ONNX Runtime. Of merged bundles the first bin is looked
    at: all have the same layers.

    Args:
        bundle: whose graphs are looked at.
        image: LR, `[H, W, 3]`; at most 64 pixels of each side are used.
        gates: `stage` is the limit of every layer.
        engine: flavour whose layers are compared with ONNX Runtime's, on a GPU; None compares with fp32.
        progress: told of each stage.

    Raises:
        RequestError: for an fp32 bundle without an engine; for an engine that cannot run here.
        BuildError: when a graph does not run, or TensorRT cannot build it with all layers as outputs.
    """
    manifest = bundle.manifest
    if engine is None and manifest.precision == "fp32":
        raise RequestError("this bundle computes in fp32 already: --layers compares fp16 graphs with fp32")
    if engine is not None:
        _require_gpu(engine)
    limit = gates.limits(manifest.precision).stage
    case = check_cases([image[:_SIDE, :_SIDE]], manifest.family, manifest.bins, (), manifest.is_adjustable)[0]
    chain, reports = Chain(bundle, case), []
    for stage, _ in manifest.ordered_stages():
        key = bundle.key(stage, case.choices)
        path = bundle.checked_graph(stage, key)
        feed = stage_inputs(manifest, stage, chain.tensors)
        if engine is not None or _computes_in_fp16(path):
            progress(f"comparing the layers of {stage}")
            errors = list(_engine_errors(path, feed, engine) if engine else _precision_errors(path, feed))
            found, truth = (engine, "ONNX Runtime") if engine else ("fp16", "fp32")
            first = next((layer for layer in errors if not layer.relative <= limit), None)
            worst = sorted(errors, key=lambda layer: layer.relative, reverse=True)[:_WORST]
            reports.append(LayerReport(stage, key, found, truth, limit, len(errors), first, tuple(worst)))
        try:
            chain.advance(stage, OnnxEngine().open(path, manifest.stages[stage]))
        except BuildError:
            if not reports or reports[-1]:
                raise
            break  # the report says which layer it was; the stages after it have nothing to read
    return reports


# --- fp16 against fp32 ----------------------------------------------------------------------------


def _computes_in_fp16(path: Path) -> bool:
    graph = onnx.load(path, load_external_data=False).graph
    return any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer)


def _precision_errors(path: Path, feed: Tensors) -> Iterator[LayerError]:
    """Run the graph as it is, and raised to fp32."""
    with tempfile.TemporaryDirectory() as scratch:
        half = _copy(path, Path(scratch) / "fp16")
        full = Path(scratch) / "fp32" / path.name
        full.parent.mkdir()
        try:
            raised = raised_to_fp32(onnx.load(path))
        except onnx.checker.ValidationError as error:  # weights behind a link, which onnx refuses to follow
            raise RequestError(f"onnx refuses {path}: {error}; copy the bundle without links") from error
        onnx.save(raised, full, save_as_external_data=True, location=f"{path.name}.data")
        del raised
        wide = {
            name: value.astype(np.float32) if value.dtype == np.float16 else value
            for name, value in feed.items()
        }
        yield from _compared(path, lambda names: (_run(half, names, feed), _run(full, names, wide)))


def raised_to_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn every fp16 weight (loaded), constant and cast of a graph into fp32, in place."""
    attributes = [(node, attribute) for node in model.graph.node for attribute in node.attribute]
    constants = [attribute.t for _, attribute in attributes if attribute.HasField("t")]
    for tensor in (*model.graph.initializer, *constants):
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node, attribute in attributes:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


# --- an engine against ONNX Runtime ---------------------------------------------------------------


def _require_gpu(flavour: BuilderFlavour) -> None:
    """TensorRT-RTX builds without a GPU and runs on none; here both must run."""
    require_builder(EngineOptions(flavour))
    try:
        count_gpus(load_runtime())
    except S3DiffError as error:
        raise RequestError(f"--layers --engine {flavour} runs engines: {error}") from error


def _engine_errors(path: Path, feed: Tensors, flavour: BuilderFlavour) -> Iterator[LayerError]:
    """Build an engine for the shapes of `feed` that gives every layer, and run it."""
    given = _run_engine(path, feed, flavour)
    with tempfile.TemporaryDirectory() as scratch:
        copy = _copy(path, Path(scratch) / "graph")

        def run(names: list[str]) -> tuple[Tensors, Tensors]:
            shared = [name for name in names if name in given]  # TensorRT folds some layers away
            return given, _run(copy, shared, feed) if shared else {}

        yield from _compared(path, run)


def _run_engine(path: Path, feed: Tensors, flavour: BuilderFlavour) -> dict[str, Array]:
    trt = _polygraphy_backend(flavour)
    network, settings = engine_of_all_layers(path, feed, flavour)
    try:
        engine = trt.EngineFromNetwork(network, settings)
        with G_LOGGER.verbosity(G_LOGGER.ERROR), trt.TrtRunner(engine) as runner:
            return dict(runner.infer(dict(feed)))
    except PolygraphyException as error:
        raise BuildError(f"{flavour} cannot run {path.name} with all layers as outputs: {error}") from error


def engine_of_all_layers(path: Path, feed: Tensors, flavour: BuilderFlavour) -> tuple[Any, Any]:
    """Polygraphy's loaders of a network whose layers are all outputs, and of its configuration.

    The engine takes the shapes of `feed` alone.
    """
    trt = _polygraphy_backend(flavour)
    profile = trt.Profile()
    for name, value in feed.items():
        profile.add(name, value.shape, value.shape, value.shape)
    network = trt.NetworkFromOnnxPath(str(path), strongly_typed=True)
    marked = trt.ModifyNetworkOutputs(network, outputs=constants.MARK_ALL)
    return marked, trt.CreateConfig(profiles=[profile])


def _polygraphy_backend(flavour: BuilderFlavour) -> ModuleType:
    """Polygraphy for a flavour: the one that a process uses first stays."""
    config.USE_TENSORRT_RTX = FLAVOURS[flavour].package == "tensorrt_rtx"
    from polygraphy.backend import trt

    return trt


# --- layer by layer -------------------------------------------------------------------------------


def _compared(original: Path, run: Callable[[list[str]], tuple[Tensors, Tensors]]) -> Iterator[LayerError]:
    """The errors of the layers of a graph, in passes whose results fit into memory.

    `run` gives what was found and the truth of the named tensors; those that either lacks are left out.
    """
    dtype = np.dtype(np.float16 if _computes_in_fp16(original) else np.float32)
    layers = [
        node
        for node in onnx.load(original, load_external_data=False).graph.node
        if node.op_type not in _SILENT_OPERATORS and node.output[0]
    ]
    start, count = 0, _FIRST_PASS
    while start < len(layers):
        batch = layers[start : start + count]
        found, truth = run([node.output[0] for node in batch])
        for node in batch:
            tensor = node.output[0]
            if tensor in found and tensor in truth and dtype in (found[tensor].dtype, truth[tensor].dtype):
                relative = errors_of(found[tensor], truth[tensor])[0]
                yield LayerError(node.name, tensor, node.op_type, relative)
        start += len(batch)
        held = sum(value.nbytes for value in truth.values())
        count = max(1, min(2 * count, _BUDGET * len(batch) // max(held, 1)))


def _run(path: Path, names: list[str], feed: Tensors) -> Tensors:
    """The named tensors, as the layers of the graph give them when none are fused."""
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    marked = path.with_name(f"marked-{path.name}")  # beside the weights, which it shares
    onnx.save(model, marked)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(marked, options, providers=["CPUExecutionProvider"])
    taken = {tensor.name for tensor in session.get_inputs()}
    results = session.run(names, {name: value for name, value in feed.items() if name in taken})
    return dict(zip(names, results, strict=True))


def _copy(path: Path, folder: Path) -> Path:
    """A copy of a graph, rounded everywhere, and of its weights, beside which other versions can lie."""
    folder.mkdir()
    weights = path.with_name(f"{path.name}.data")
    if weights.exists():
        shutil.copyfile(weights, folder / weights.name)
    model = onnx.load(path, load_external_data=False)
    onnx.save(rounded_everywhere(model), folder / path.name)
    return folder / path.name


def rounded_everywhere(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let every layer's result take its own type before the next one reads it, in place.

    ONNX Runtime computes most fp16 layers in fp32 on the CPU, and where two follow each other it leaves out
    the rounding between them, and with it overflows that a GPU shows. Two copies in a row make it round.
    """
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        name = node.output[0]
        if node.op_type in _SILENT_OPERATORS or not name:
            model.graph.node.append(node)
            continue
        exact, copy = f"{name}/exact", f"{name}/copy"
        node.output[0] = exact
        copies = [helper.make_node("Identity", [of], [to]) for of, to in ((exact, copy), (copy, name))]
        model.graph.node.extend([node, *copies])
    return model
