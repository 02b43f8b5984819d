"""What a request to the Triton model may ask for, apart from how Triton hands it over."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.options import Options, group, infos_of, option, read, types_of
from s3diff_runtime.pictures.formats import QUALITY, Format
from s3diff_runtime.pictures.photograph import Photograph, open_photograph
from s3diff_runtime.pictures.reading import MAX_PIXELS
from s3diff_runtime.settings import PictureSettings
from s3diff_runtime.upscale_options import UpscaleOptions

T = TypeVar("T", bound=Options)
Form = Literal["image", "pixels"]
"""How pictures travel: as the bytes of a file, or as arrays."""
INPUTS: Mapping[Form, str] = {"image": "image", "pixels": "pixels"}
"""Names of the inputs; a request has one of them."""
OUTPUTS: Mapping[Form, str] = {"image": "upscaled", "pixels": "upscaled_pixels"}
"""Names of the outputs that hold pictures."""
BUNDLE = "bundle"
"""Folder of the bundle in a version of the model."""


@dataclass(frozen=True)
class ServedModel(Options):
    """How a server runs a bundle: what the configuration of the Triton model holds besides Triton's own."""

    engine: str = option(
        "auto",
        "onnx, tensorrt or tensorrt-rtx; auto takes engines of the bundle that fit the GPU, or else onnx.",
    )
    max_pixels: int = option(MAX_PIXELS, "Larger inputs are refused; a result has 16 times as many.", least=1)
    options: UpscaleOptions = group(UpscaleOptions, only=("tile", "batch", "threads"))


@dataclass(frozen=True)
class RequestParameters(Options):
    """What the parameters of a request may ask for."""

    settings: PictureSettings = group(PictureSettings)
    format: Format = option("png", "Of the file that a request for one gets.")
    quality: int = option(QUALITY, "Of JPEG and WebP.", least=1, most=100)


def options_from_text(cls: type[T], values: Mapping[str, object]) -> T:
    """Make options of parameters by their names, groups and all, whose numbers may come as text.

    Raises:
        RequestError: naming every unknown parameter, or all that is wrong with the known ones.
    """
    paths = _paths(cls)
    refuse(
        f"unknown parameter {name!r}, expected some of {', '.join(paths)}"
        for name in values
        if name not in paths
    )
    return read(cls, {paths[name][0]: _typed(value, paths[name][1]) for name, value in values.items()})


def decoded(inputs: Mapping[Form, NDArray[np.uint8]], max_pixels: int) -> list[Photograph]:
    """The pictures of a request.

    Args:
        inputs: its one input, after the batch's axis: a file's bytes `[1, length]`, or RGB `[N, H, W, 3]`.
        max_pixels: larger pictures are refused.

    Raises:
        RequestError: for none or two inputs, several files in one request, and pictures that cannot be read.
    """
    if len(inputs) != 1:
        found = " and ".join(INPUTS[form] for form in inputs) or "none"
        raise RequestError(f"the inputs are {found}, expected one of {' and '.join(INPUTS.values())}")
    if "pixels" in inputs:
        return [open_photograph(pixels, max_pixels) for pixels in inputs["pixels"]]
    files = inputs["image"]
    if len(files) != 1:
        raise RequestError(f"{len(files)} files in a request, expected one; send a request for each")
    return [open_photograph(files[0].tobytes(), max_pixels)]


def answered_as(inputs: Mapping[Form, object], wanted: frozenset[str]) -> Form:
    """The form of the answer: the one that was asked for, or the input's where neither or both were."""
    asked = [form for form, name in OUTPUTS.items() if name in wanted]
    return asked[0] if len(asked) == 1 else next(iter(inputs))


def parameters_of(text: str) -> RequestParameters:
    """The parameters of a request, which Triton hands over as JSON. Raises `RequestError`."""
    return options_from_text(RequestParameters, json.loads(text or "{}"))


def _paths(cls: type[Options], prefix: str = "") -> dict[str, tuple[str, Any]]:
    """Where `read` expects each option, and its type, by name."""
    hints = types_of(cls)
    found = {name: (prefix + name, hints[name]) for name in infos_of(cls)}
    for name, hint in hints.items():
        if isinstance(hint, type) and issubclass(hint, Options):
            found |= _paths(hint, f"{prefix}{name}.")
    return found


def _typed(value: object, hint: object) -> object:
    """A number that came as text; what is none stays, and is refused by its option."""
    if hint in (int, float) and isinstance(value, str):
        try:
            return int(value) if hint is int else float(value)
        except ValueError:
            return value
    return value
