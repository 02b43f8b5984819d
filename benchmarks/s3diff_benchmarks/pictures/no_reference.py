"""Optional scores of an image alone, by the package pyiqa where a user has installed it.

pyiqa's licence forbids commercial use, so nothing here depends on it or installs it. It fetches weights that
its cache lacks, which is why these scores are taken only when they are asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from s3diff_benchmarks.pictures.scoring import Sample, Score
from s3diff_runtime.errors import RequestError

LABELS = {"niqe": "NIQE", "musiq": "MUSIQ", "maniqa-pipal": "MANIQA", "clipiqa": "CLIPIQA"}
"""pyiqa's names of the scores in the paper's tables, as users of its published protocol take them."""
HOW = "NIQE, MUSIQ, MANIQA, CLIPIQA: pip install pyiqa (non-commercial licence), then pass --no-reference"


def no_reference_scores(device: str) -> Iterator[Score | str]:
    """All scores that pyiqa can load on this machine, each with a note on its source; else a note on why not.

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
    version = getattr(pyiqa, "__version__", "of unknown version")
    for key, label in LABELS.items():
        try:
            model = pyiqa.create_metric(key, device=device)
        except Exception as error:  # of any kind: weights that cannot be had, versions that do not fit
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            yield f"{label} was not measured: pyiqa cannot load {key} ({reason})"
            continue
        yield Score(label, "lower" if model.lower_better else "higher", partial(_score, model, device))
        yield f"{label}: pyiqa {version} {key}, its own weights"


def _score(model: Any, device: str, sample: Sample) -> float:  # noqa: ANN401 - pyiqa's
    import torch

    from s3diff_training.data import from_uint8

    with torch.inference_mode():
        return float(model(from_uint8(sample.result)[None].to(device)))
