"""The model that NVIDIA Triton's Python backend runs, in a process of its own for each instance.

The backend imports it through the `model.py` that `s3diff-export triton-repository` writes. Tensors go both
ways by DLPack: the backend's own conversion corrupts them where it was compiled for an older numpy.
"""

import ctypes
import json
import logging
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import triton_python_backend_utils as pb_utils  # exists inside the backend alone
from numpy.typing import NDArray
from PIL import Image

from s3diff_runtime.errors import (
    OutOfMemory,
    RequestError,
    S3DiffError,
    first_line,
    is_refusal,
    one_line,
)
from s3diff_runtime.pictures.formats import FileFormat, encode
from s3diff_runtime.pictures.photograph import Photograph
from s3diff_runtime.serving.picture_request import PictureRequest, read_texts
from s3diff_runtime.serving.served_model import ServedModel
from s3diff_runtime.serving.triton_requests import (
    BUNDLE,
    INPUTS,
    OUTPUTS,
    Form,
    answered_as,
    asked_by,
    decoded,
)
from s3diff_runtime.settings import Conditions
from s3diff_runtime.upscaler import Result, Upscaler

_logger = logging.getLogger("s3diff_runtime")


@dataclass
class _Work:
    """A request on its way."""

    inputs: dict[Form, NDArray[np.uint8]]
    wanted: frozenset[str]
    parameters: str
    """As JSON."""
    cancelled: bool
    """Whether nobody waits for it any more."""
    asked: PictureRequest = field(default_factory=PictureRequest)
    photographs: list[Photograph] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    format: FileFormat | None = None
    """Of the file that answers; None where pixels do."""
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def open(self) -> bool:
        return self.error is None and not self.cancelled

    @property
    def outcome(self) -> str:
        """For the metrics."""
        if self.error is not None:
            return "refused" if is_refusal(self.error) else "failed"
        return "cancelled" if self.cancelled else "done"


class TritonPythonModel:
    """What the backend makes, asks and ends; see its documentation for when it calls what."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle on the device of this instance. What is wrong with it ends the loading."""
        logging.getLogger("s3diff_runtime").addHandler(_TritonHandler())
        logging.getLogger("s3diff_runtime").setLevel(logging.INFO)
        Image.MAX_IMAGE_PIXELS = None  # inputs have our own limit, and results are larger
        warnings.filterwarnings("ignore", module=r"PIL\.")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE
        on_cpu = args["model_instance_kind"] == "CPU"
        device = "cpu" if on_cpu else f"cuda:{args['model_instance_device_id']}"
        try:
            texts = {name: value["string_value"] for name, value in config["parameters"].items()}
            served = read_texts(ServedModel, texts.items())
            self._upscaler = Upscaler.open(folder, served.engine, device, served.options)
        except S3DiffError as error:
            raise pb_utils.TritonModelException(one_line(str(error))) from None
        self._max_pixels = served.max_pixels
        self._metrics = _Metrics(model=args["model_name"], device=device)
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "picture")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of a batch, each with its own result or error."""
        works = [_taken(request) for request in requests]
        list(self._pool.map(self._decode, works))
        self._upscale([work for work in works if work.open])
        list(self._pool.map(self._encode, works))
        self._metrics.count(works)
        return [_response(work) for work in works]

    def finalize(self) -> None:
        """Free the graphs."""
        self._pool.shutdown()
        self._upscaler.close()

    def _decode(self, work: _Work) -> None:
        if not work.open:
            return
        try:
            work.asked = asked_by(work.parameters)
            conditions = Conditions.of(self._upscaler.manifest, work.asked.settings)
            work.photographs = decoded(work.inputs, self._max_pixels)
            for photograph in work.photographs:
                height, width, _ = photograph.pixels.shape
                self._upscaler.check_size(height, width, conditions.scale)
            if answered_as(work.inputs, work.wanted) == "image":
                work.format = _file_format(work, conditions.scale)
        except Exception as error:
            work.error = error

    def _upscale(self, works: Sequence[_Work]) -> None:
        """Upscale the pictures of requests; when that fails, one request at a time."""
        photographs = [photograph for work in works for photograph in work.photographs]
        each = [work.asked.settings.keywords for work in works for _ in work.photographs]
        try:
            results = iter(self._upscaler(photographs, each))
        except Exception as error:
            if len(works) == 1:
                works[0].error = error
            else:
                for work in works:
                    self._upscale([work])
            return
        for work in works:
            work.results = [next(results) for _ in work.photographs]

    def _encode(self, work: _Work) -> None:
        if work.open:
            try:
                work.outputs = _outputs(work)
            except Exception as error:
                work.error = error


class _Metrics:
    """Counters of this instance, among Triton's own on its page of metrics."""

    _FAMILIES: Final = {
        "s3diff_requests_total": "Requests to the model by what became of them.",
        "s3diff_calls_total": "Batches of requests that Triton handed over.",
        "s3diff_pixels_total": "Pixels of results.",
        "s3diff_stage_seconds_total": "Seconds by stage of the network, and on the host.",
    }

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=told, kind=pb_utils.MetricFamily.COUNTER)
            for name, told in self._FAMILIES.items()
        }
        self._metrics: dict[tuple[str, ...], Any] = {}  # one that is let go vanishes from the page

    def count(self, works: Sequence[_Work]) -> None:
        """Count a batch of requests that were answered."""
        results = [result for work in works for result in work.results]
        self._add("s3diff_calls_total", 1)
        for outcome, number in Counter(work.outcome for work in works).items():
            self._add("s3diff_requests_total", number, outcome=outcome)
        self._add("s3diff_pixels_total", sum(each.pixels.shape[0] * each.pixels.shape[1] for each in results))
        for result in results:
            for stage, seconds in result.seconds.items():
                self._add("s3diff_stage_seconds_total", seconds, stage=stage)

    def _add(self, name: str, amount: float, **labels: str) -> None:
        key = (name, *labels.values())
        if key not in self._metrics:
            self._metrics[key] = self._families[name].Metric(labels=self._labels | labels)
        self._metrics[key].increment(amount)


class _TritonHandler(logging.Handler):
    """Hands log records to the server's own log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record, in one line, as an error, a warning or an information."""
        text = one_line(self.format(record))
        if record.levelno >= logging.ERROR:
            pb_utils.Logger.log_error(text)
        elif record.levelno >= logging.WARNING:
            pb_utils.Logger.log_warn(text)
        else:
            pb_utils.Logger.log_info(text)


def _taken(request: Any) -> _Work:  # noqa: ANN401 - the backend has no types
    """What a request brings, copied out of the memory that the backend shares with the server."""
    inputs: dict[Form, NDArray[np.uint8]] = {}
    for form, name in INPUTS.items():
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            inputs[form] = np.array(np.from_dlpack(tensor))
    return _Work(
        inputs, frozenset(request.requested_output_names()), request.parameters(), request.is_cancelled()
    )


def _file_format(work: _Work, scale: int) -> FileFormat:
    """Of the file that answers; raises `RequestError` where none could, before it is computed."""
    if len(work.photographs) != 1:
        several = f"{len(work.photographs)} pictures in a request cannot be answered with a file"
        raise RequestError(f"{several}; ask for {OUTPUTS['pixels']}")
    return work.asked.format_for(work.photographs[0], scale)


def _outputs(work: _Work) -> dict[str, NDArray[Any]]:
    """The tensors that answer a request."""
    outputs: dict[str, NDArray[Any]] = {
        axis: np.array([[result.applied[axis]] for result in work.results], np.float32)
        for axis in work.results[0].applied
    }
    if work.format is None:
        outputs[OUTPUTS["pixels"]] = np.stack([result.pixels for result in work.results])
    else:
        file, _ = encode(work.results[0].image, work.format, work.asked.quality)
        outputs[OUTPUTS["image"]] = np.frombuffer(bytearray(file), np.uint8)[None]
    return outputs


def _response(work: _Work) -> Any:  # noqa: ANN401
    """What the backend returns to the client: the outputs, or one error."""
    if work.cancelled:
        told = pb_utils.TritonError("the client has gone", pb_utils.TritonError.CANCELLED)
        return pb_utils.InferenceResponse(error=told)
    if work.error is not None:
        told = pb_utils.TritonError(one_line(_words(work.error)), _code(work.error))
        return pb_utils.InferenceResponse(error=told)
    return pb_utils.InferenceResponse([_tensor(name, values) for name, values in work.outputs.items()])


def _tensor(name: str, values: NDArray[Any]) -> Any:  # noqa: ANN401
    """Hand an array over. The backend frees it, so the capsule must not: it would complain in the log."""
    capsule = values.__dlpack__()
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return pb_utils.Tensor.from_dlpack(name, capsule)


def _code(error: Exception) -> Any:  # noqa: ANN401
    """Over HTTP 400 for a wrong request, 503 where memory ran out, else 500."""
    if is_refusal(error):
        return pb_utils.TritonError.INVALID_ARG
    is_busy = isinstance(error, OutOfMemory)
    return pb_utils.TritonError.UNAVAILABLE if is_busy else pb_utils.TritonError.INTERNAL


def _words(error: Exception) -> str:
    """An error for the client; what nobody raised on purpose goes into the server's log as well."""
    if isinstance(error, S3DiffError):
        return str(error)
    _logger.error("a request failed: %s", "".join(traceback.format_exception(error)))
    return f"unexpected {type(error).__name__}: {first_line(error)}"
