"""What a build may choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from s3diff_export.bins import grid
from s3diff_export.engines.options import EngineOptions
from s3diff_export.graphs import GraphOptions
from s3diff_export.verify import Gates
from s3diff_runtime.bundle.manifest import Bin
from s3diff_runtime.errors import RequestError
from s3diff_runtime.vocabulary import ColorFix

__all__ = ["BuildOptions", "ModelSource"]


@dataclass(frozen=True)
class ModelSource:
    """The weights that a bundle is built from."""

    base: str
    """A diffusers folder such as SD-Turbo's, or a hub id."""
    checkpoint: Path
    """`.safetensors`, or the released `s3diff.pkl`."""
    estimator: Path | None = None
    """The released `de_net.pth`, where the checkpoint has no estimator."""


@dataclass(frozen=True)
class BuildOptions:
    """How the weights become a bundle.

    Raises:
        RequestError: naming everything that does not fit, at once.
    """

    graphs: GraphOptions = field(default_factory=GraphOptions)
    bins: tuple[Bin, ...] = grid(3, 3)
    """For `merged`; other modes ignore them."""
    color_fixes: tuple[ColorFix, ...] = get_args(ColorFix)
    gates: Gates = field(default_factory=Gates)
    verify: bool = True
    """Compare the bundle with PyTorch before it is published."""
    check_folder: Path | None = None
    """Folder of low-resolution photographs to verify with; None draws pictures."""
    engines: EngineOptions | None = None
    """Engines to put into the bundle before it is published; None builds none."""

    def __post_init__(self) -> None:
        """Check every field."""
        problems = []
        if not self.bins:
            problems.append("no bins, expected one or more")
        if not self.color_fixes or set(self.color_fixes) - set(get_args(ColorFix)):
            problems.append(f"color_fixes {self.color_fixes}, expected some of {get_args(ColorFix)}")
        if problems:
            raise RequestError("wrong build options: " + "; ".join(problems))
