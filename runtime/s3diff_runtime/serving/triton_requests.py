"""What the Triton model and its clients say to each other, apart from how Triton hands it over."""

import json
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.photograph import Photograph, open_photograph
from s3diff_runtime.serving.picture_request import PictureRequest, read_texts

Form = Literal["image", "pixels"]
"""How pictures travel: as the bytes of a file, or as arrays."""
INPUTS: Mapping[Form, str] = {"image": "image", "pixels": "pixels"}
"""Names of the inputs; a request has one of them."""
OUTPUTS: Mapping[Form, str] = {"image": "upscaled", "pixels": "upscaled_pixels"}
"""Names of the outputs that hold pictures."""
BUNDLE = "bundle"
"""Folder of the bundle in a version of the model."""


def asked_by(parameters: str) -> PictureRequest:
    """What the parameters of a request ask for, which Triton gives as JSON. Raises `RequestError`."""
    texts = json.loads(parameters or "{}").items()
    return read_texts(PictureRequest, ((name, str(value)) for name, value in texts))


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
