"""What the Triton model and its clients say to each other, apart from how Triton hands it over."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.options import Options, group, option, read
from s3diff_runtime.pictures.photograph import MAX_PIXELS, Photograph, open_photograph
from s3diff_runtime.serving.picture_request import PictureRequest, parameters_of, read_query
from s3diff_runtime.upscale_options import UpscaleOptions

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

    engine: str = option("auto", ENGINE_HELP)
    max_pixels: int = option(4_000_000, "Larger pictures are refused.", least=1, most=MAX_PIXELS)
    options: UpscaleOptions = group(UpscaleOptions, only=("tile", "batch", "threads", "cpu_precision"))

    @classmethod
    def configured(cls, texts: Mapping[str, str]) -> "ServedModel":
        """Read it from the parameters of a configuration, which are texts. Raises `RequestError`."""
        known = {parameter.name: parameter for parameter in parameters_of(cls)}
        names = ", ".join(known)
        refuse(f"unknown parameter {name!r}, expected some of {names}" for name in texts if name not in known)
        return read(cls, {known[name].path: known[name].value_of(text) for name, text in texts.items()})


def asked_by(parameters: str) -> PictureRequest:
    """What the parameters of a request ask for, which Triton gives as JSON. Raises `RequestError`."""
    return read_query((name, str(value)) for name, value in json.loads(parameters or "{}").items())


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
