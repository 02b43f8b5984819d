"""The manifest of a bundle: what the folder holds, how its stages fit together, and what is checked of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator

from s3diff_runtime.bundle.engine_records import EngineSet, sidecar_path
from s3diff_runtime.bundle.integrity import file_problems
from s3diff_runtime.bundle.records import (
    MANIFEST_NAME,
    FileRecord,
    Part,
    RelativePath,
    Score,
    Sha256,
    TensorSpec,
    UtcTime,
)
from s3diff_runtime.errors import BundleError
from s3diff_runtime.files import replacing
from s3diff_runtime.lora_modes import LoraMode
from s3diff_runtime.vocabulary import SCALE, ColorFix, Precision

FORMAT: Final = "s3diff-bundle"
REVISION: Final = 1
"""The revision of the format that this runtime reads and the exporter beside it writes."""
SHARED = "shared"
"""Key of a stage's only graph where it serves every bin."""
REQUIRED_TENSORS = {
    "estimator": (("image",), ("degradation",)),
    "modulation": (("degradation",), ()),
    "vae_encoder": (("image",), ("latent",)),
    "unet": (("latent",), ("x0",)),
    "vae_decoder": (("x0",), ("decoded",)),
    "finish": (("decoded", "image"), ("upscaled",)),
    "text_encoder": (("tokens",), ("prompts",)),
}
"""What each stage must read and give; `finish` stands for `finish_wavelet`, `finish_adain`, `finish_none`."""

HOST_TENSORS = {
    "image": "uint8",
    "degradation": "float32",
    "guidance": "float32",
    "tokens": "int64",
    "upscaled": "uint8",
}
"""Types of the tensors that the host makes or reads."""


class Stage(Part):
    """One step of the network: its tensors, in the order of the graph, and its ONNX files.

    `graphs` maps a bin's name to a graph; a stage that serves all bins has the one key `shared`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graphs: dict[str, RelativePath]


class Bin(Part):
    """A point of degradation space for which merged weights exist; scores in [0, 1]."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    noise: Score
    blur: Score


class Prompts(Part):
    """The texts that condition the network.

    `folded` prompts are constants of the graphs. With `runtime` the bundle encodes any text: `tokenizer` is
    the path of a `tokenizer.json` whose own truncation and padding give exactly `max_length` tokens, and the
    texts here are the defaults.
    """

    mode: Literal["folded", "runtime"]
    positive: str
    negative: str
    max_length: int | None = Field(default=None, ge=1)
    tokenizer: RelativePath | None = None


class Guidance(Part):
    """Classifier-free guidance (eq. 5): whether the graph runs the negative prompt, and the usual scale."""

    mode: Literal["on", "off"]
    default: float


class Source(Part):
    """What the bundle was built from: a name to recognise it by, and its hash."""

    name: str
    sha256: Sha256


class Manifest(Part):
    """Everything that a runtime must know of a bundle. Consistent in itself once it exists.

    `multiple` is the number of high-resolution pixels that the encoder pads both sides to a multiple of.
    `files` names every file of the bundle but the manifest. `reports` is free-form JSON by the exporter.
    """

    format: Literal["s3diff-bundle"] = FORMAT
    revision: Literal[1] = REVISION
    producer: str
    created: UtcTime
    sources: dict[str, Source]
    lora_mode: LoraMode
    precision: Precision
    scale: Literal[4] = SCALE
    multiple: int = Field(ge=SCALE, multiple_of=SCALE)
    vae_factor: int = Field(ge=1)
    latent_channels: int = Field(ge=1)
    degradation_axes: tuple[Literal["noise", "blur"], Literal["noise", "blur"]]
    bins: tuple[Bin, ...] = ()
    prompts: Prompts
    guidance: Guidance
    color_fixes: tuple[ColorFix, ...] = Field(min_length=1)
    stages: dict[str, Stage]
    engines: tuple[EngineSet, ...] = ()
    files: dict[RelativePath, FileRecord]
    reports: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, check: Literal["sizes", "hashes"] = "sizes") -> Self:
        """Read and check the manifest of the bundle in `folder`, and the files that it names.

        Args:
            folder: of the bundle.
            check: `sizes` compares the sizes of all files and the hashes of the small ones; `hashes` reads
                every file.

        Raises:
            BundleError: naming all problems found: of the manifest's text, or of its fields, or of the files.
        """
        manifest = cls._parse(folder)
        problems = list(file_problems(folder, manifest.files, manifest.graph_folders(), check == "hashes"))
        if problems:
            raise BundleError(
                f"{folder} is not the bundle its manifest describes: {'; '.join(problems)}; "
                "copy the bundle again or rebuild it with s3diff-export build"
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically. Raises `JobError` when the disk refuses."""
        with replacing(folder / MANIFEST_NAME) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def graph_folders(self) -> set[str]:
        """The folders, relative to the bundle, that hold graphs or engines."""
        graphs = [graph for stage in self.stages.values() for graph in stage.graphs.values()]
        engines = [engine for each in self.engines for engine in each.paths()]
        return {str(PurePosixPath(path).parent) for path in graphs + engines}

    @classmethod
    def _parse(cls, folder: Path) -> Self:
        path = folder / MANIFEST_NAME
        rebuild = "rebuild the bundle with s3diff-export build"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}; {rebuild}") from error
        except OSError as error:
            raise BundleError(f"could not read {path}: {error.strerror}") from error
        except ValueError as error:
            raise BundleError(f"{path} is damaged, it is not JSON ({error}); {rebuild}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BundleError(f'{path} is not the manifest of a bundle (expected "format": "{FORMAT}")')
        revision = content.get("revision")
        if isinstance(revision, int) and revision > REVISION:
            raise BundleError(
                f"{path} has revision {revision} and this version reads {REVISION}: update s3diff-export"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(_describe(error))
            raise BundleError(f"{path} is not a valid manifest: {problems}; {rebuild}") from error

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        problems = [*self._field_problems(), *self._stage_problems(), *self._wiring_problems()]
        problems += self._engine_problems()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _field_problems(self) -> Iterator[str]:
        if len(set(self.degradation_axes)) != 2:
            yield f"degradation_axes is {list(self.degradation_axes)}, expected noise and blur, each once"
        if (self.lora_mode == "merged") != bool(self.bins):
            yield f"lora_mode {self.lora_mode} with {len(self.bins)} bins, expected bins for merged alone"
        names = [bin.name for bin in self.bins]
        if len(set(names)) != len(names) or SHARED in names:
            yield f"names of bins must differ from each other and from {SHARED!r}, found {names}"
        if self.prompts.mode == "runtime" and None in (self.prompts.tokenizer, self.prompts.max_length):
            yield "prompts of mode runtime need tokenizer and max_length"
        if self.prompts.tokenizer is not None and self.prompts.tokenizer not in self.files:
            yield f"prompts.tokenizer {self.prompts.tokenizer!r} is missing in files"

    def _stage_problems(self) -> Iterator[str]:
        expected = {"estimator", "vae_encoder", "unet", "vae_decoder"}
        expected |= {f"finish_{fix}" for fix in self.color_fixes}
        if self.prompts.mode == "runtime":
            expected.add("text_encoder")
        if any("modulation" in tensor.name for stage in self.stages.values() for tensor in stage.inputs):
            expected.add("modulation")
        for name in sorted(expected ^ set(self.stages)):
            yield f"stage {name} is {'missing' if name in expected else 'not expected'}"
        bins = {bin.name for bin in self.bins}
        for name, stage in self.stages.items():
            if set(stage.graphs) not in ({SHARED}, bins) or not stage.graphs:
                yield f"stage {name} has graphs for {sorted(stage.graphs)}, expected {SHARED!r} or every bin"
            for graph in stage.graphs.values():
                if graph not in self.files:
                    yield f"graph {graph!r} of stage {name} is missing in files"

    def _wiring_problems(self) -> Iterator[str]:
        """Every stage reads what the host or a stage before it gives, under the right type."""
        given = {"image", "tokens"} | ({"guidance"} if self.guidance.mode == "on" else set())
        order = ["text_encoder", "estimator", "modulation", "vae_encoder", "unet", "vae_decoder"]
        finishes = [f"finish_{fix}" for fix in self.color_fixes]
        for name in [name for name in order + finishes if name in self.stages]:
            stage = self.stages[name]
            inputs, outputs = ([tensor.name for tensor in part] for part in (stage.inputs, stage.outputs))
            must_read, must_give = REQUIRED_TENSORS[name.partition("_")[0] if name in finishes else name]
            for kind, missing in (
                ("the input", set(must_read) - set(inputs)),
                ("the output", set(must_give) - set(outputs)),
                ("anything that makes its input", set(inputs) - given),
            ):
                for tensor in sorted(missing):
                    yield f"stage {name} lacks {kind} {tensor}"
            for spec in (*stage.inputs, *stage.outputs):
                if spec.dtype != HOST_TENSORS.get(spec.name, spec.dtype):
                    yield f"{spec.name} of stage {name} is {spec.dtype}, expected {HOST_TENSORS[spec.name]}"
            given |= set(outputs)
        unet = {tensor.name for tensor in self.stages["unet"].inputs} if "unet" in self.stages else set()
        for tensor, wanted in (
            ("guidance", self.guidance.mode == "on"),
            ("prompts", self.prompts.mode == "runtime"),
        ):
            if unet and (tensor in unet) != wanted:
                verb = "lacks" if wanted else "has"
                yield f"stage unet {verb} the input {tensor}, against the mode of {tensor}"

    def _engine_problems(self) -> Iterator[str]:
        """Every set of engines has all graphs, its files, and sides that the graphs' padding allows."""
        names = [engines.name for engines in self.engines]
        if len(set(names)) != len(names):
            yield f"names of engine sets must differ, found {names}"
        expected = {name: set(stage.graphs) for name, stage in self.stages.items()}
        padding = self.multiple // SCALE
        for engines in self.engines:
            where = f"engine set {engines.name}"
            if {name: set(graphs) for name, graphs in engines.graphs.items()} != expected:
                yield f"{where} has other stages or bins than the bundle"
            if engines.identity.precision != self.precision:
                yield f"{where} is {engines.identity.precision} and the bundle {self.precision}"
            profile = engines.identity.profile
            sides = {size for side in (profile.height, profile.width) for size in side.sizes()}
            for side in sorted(side for side in sides if side % padding):
                yield f"{where} has a side of {side}, expected multiples of {padding}"
            for path in engines.paths():
                if not path.startswith(f"engines/{engines.name}/") or not path.endswith(".engine"):
                    yield f"{path!r} of {where} is no engine in engines/{engines.name}"
                for file in (path, sidecar_path(path)):
                    if file not in self.files:
                        yield f"{file!r} of {where} is missing in files"


def _describe(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False):
        where = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ")
        yield " ".join((f"{where}: {what}" if where else what).split())
