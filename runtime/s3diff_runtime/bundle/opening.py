"""An opened bundle: its checked manifest, where its graphs are, and which bin serves a degradation."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from s3diff_runtime.bundle.engine_records import EngineSet
from s3diff_runtime.bundle.external_weights import external_files
from s3diff_runtime.bundle.integrity import checked_content
from s3diff_runtime.bundle.manifest import SHARED, Manifest
from s3diff_runtime.bundle.records import total_size
from s3diff_runtime.errors import BundleError


def cuda_form_of(graph: str) -> str:
    """Path of a graph's form for ONNX Runtime on CUDA: beside it, reading the same weights."""
    return f"{graph.removesuffix('.onnx')}.cuda.onnx"


@dataclass(frozen=True)
class Bundle:
    """A folder with a manifest that was checked against it."""

    folder: Path
    manifest: Manifest
    engines: EngineSet | None = None
    """The engines that take the place of the ONNX graphs; None runs the graphs."""
    cuda_forms: bool = False
    """Whether graphs run in their form for ONNX Runtime on CUDA, where they have one."""

    @classmethod
    def open(cls, folder: Path, check: Literal["sizes", "hashes"] = "sizes") -> Self:
        """Check the bundle in `folder`, see `Manifest.read`. Raises `BundleError`, naming all problems."""
        return cls(folder, Manifest.read(folder, check))

    def key(self, stage: str, choices: Collection[str] = ()) -> str:
        """Under which name `stage` keeps the graph that serves the bin and the scale that were chosen."""
        return next((key for key in self.manifest.stages[stage].graphs if key in choices), SHARED)

    def graph(self, stage: str, key: str) -> str:
        """Name of the file that runs: an ONNX graph or an engine."""
        if self.engines:
            return self.engines.graphs[stage][key]
        graph = self.manifest.stages[stage].graphs[key]
        form = cuda_form_of(graph)
        return form if self.cuda_forms and form in self.manifest.files else graph

    def checked_graph(self, stage: str, key: str) -> Path:
        """Path of what runs, after the weights that a graph reads were found in the manifest.

        Raises:
            BundleError: for an ONNX graph that names other files, wherever they are.
        """
        name = self.graph(stage, key)
        if self.engines is None:
            try:
                named = external_files(self.read(name))
            except ValueError as error:
                raise BundleError(f"{name} is no ONNX graph ({error}); rebuild the bundle") from error
            folder = PurePosixPath(name).parent
            strays = sorted(each for each in named if str(folder / each) not in self.manifest.files)
            if strays:
                raise BundleError(
                    f"{name} reads weights from {', '.join(strays)}, which the manifest does not name; "
                    "rebuild the bundle with s3diff-export build"
                )
        return self.folder / name

    def size(self, stage: str, key: str) -> int:
        """Bytes of what runs, with its weights."""
        plain = replace(self, cuda_forms=False).graph(stage, key)  # a form reads the same weights
        return total_size(self.manifest.graph_files(plain))

    def read(self, name: str) -> bytes:
        """The content of a file, after its size and hash were checked. Raises `BundleError`."""
        return checked_content(self.folder, name, self.manifest.files.get(name))
