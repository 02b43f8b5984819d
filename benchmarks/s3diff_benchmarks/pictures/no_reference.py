"""Optional scores of an image alone, by the package pyiqa where a user has installed it.

pyiqa's licence forbids commercial use, so nothing here depends on it or installs it. It fetches weights that
its cache lacks, which is why these scores are taken only when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s3diff_runtime.errors import RequestError

LABELS = {"niqe": "NIQE", "musiq": "MUSIQ", "maniqa-pipal": "MANIQA", "clipiqa": "CLIPIQA"}
"""pyiqa's names of the scores in the paper's tables, as users of its published protocol take them."""
HOW = "NIQE, MUSIQ, MANIQA, CLIPIQA: pip install pyiqa (non-commercial licence), then pass --no-reference"


@dataclass(frozen=True)
class NoReference:
    """One score of one image."""

    key: str
    label: str
    lower_is_better: bool
    source: str
    score: Callable[[NDArray[np.uint8]], float]
    """Of uint8 RGB `[H, W, 3]`."""


def no_reference_scores(device: str) -> Iterator[NoReference | str]:
    """All scores that pyiqa can load on this machine, and a note in the place of each that it cannot.

    Args:
        device: of torch.

    Raises:
        RequestError: when pyiqa is not installed.
    """
    try:
        pyiqa: Any = importlib.import_module("pyiqa")
    except ImportError as error:
        raise RequestError(
            f"--no-reference needs a package that is not installed ({error}). {HOW}"
        ) from error
    for key, label in LABELS.items():
        try:
            model = pyiqa.create_metric(key, device=device)
        except Exception as error:  # of any kind: weights that cannot be had, versions that do not fit
            yield f"{label} was not measured: pyiqa cannot load {key} ({_first_line(error)})"
            continue
        source = f"{label}: pyiqa {_version()} {key}, its own weights"
        yield NoReference(key, label, bool(model.lower_better), source, _scored(model, device))


def _scored(model: Any, device: str) -> Callable[[NDArray[np.uint8]], float]:  # noqa: ANN401 - pyiqa's
    import torch

    from s3diff_training.data import from_uint8

    def score(pixels: NDArray[np.uint8]) -> float:
        with torch.inference_mode():
            return float(model(from_uint8(pixels)[None].to(device)))

    return score


def _version() -> str:
    try:
        return version("pyiqa")
    except PackageNotFoundError:
        return "of unknown version"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
