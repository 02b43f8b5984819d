"""The manifest of a bundle: what the folder holds, how its stages fit together, and what is checked of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import from_json

from s3diff_runtime.bundle.engine_records import EngineSet, sidecar_path
from s3diff_runtime.bundle.integrity import file_problems, opened_inside, sha256, unreadable
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
from s3diff_runtime.errors import BundleError, wrong_fields
from s3diff_runtime.families import FAMILIES, FamilyName
from s3diff_runtime.files import tidy_up, write_text
from s3diff_runtime.lora_modes import LORA_MODES, LoraMode
from s3diff_runtime.stages import STAGES, TENSORS, StageKind, TensorKind, kind_of, scale_key
from s3diff_runtime.strengths import PASSES, Strengths
from s3diff_runtime.vocabulary import SCALE, SCALES, Axis, ColorFix, Precision

FORMAT: Final = "s3diff-bundle"
REVISION: Final = 1
"""The revision of the format that this runtime reads and the exporter beside it writes."""
SHARED = "shared"
"""Key of a stage's only graph where it serves every bin."""
_MOST_BYTES = 64 * 2**20
"""Of a manifest; one of 36 bins and several sets of engines has less than 1 MiB."""


class Stage(Part):
    """One step of the network: its tensors, in the order of the graph, and its ONNX files.

    `graphs` maps a bin's name to a graph, or of the stage `enlarge` a scale's, or of an adjustable UNet a
    pass's; a stage that serves all has the one key `shared`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    graphs: dict[str, RelativePath]


class Bin(Part):
    """A point of degradation space for which merged weights exist; scores in [0, 1]."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    noise: Score
    blur: Score


def nearest_bin(bins: Sequence[Bin], noise: float, blur: float) -> Bin | None:
    """The bin closest to the degradation, the first of equally close ones; None where there are none."""
    return min(bins, key=lambda bin: (bin.noise - noise) ** 2 + (bin.blur - blur) ** 2, default=None)


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
    `degradation_axes` is empty for families that read no degradation.
    `files` names every file of the bundle but the manifest. `reports` is free-form JSON by the exporter.
    """

    format: Literal["s3diff-bundle"] = FORMAT
    revision: Literal[1] = REVISION
    producer: str
    created: UtcTime
    family: FamilyName = "s3diff"
    sources: dict[str, Source]
    lora_mode: LoraMode
    precision: Precision
    scale: Literal[4] = SCALE
    multiple: int = Field(ge=SCALE, multiple_of=SCALE)
    vae_factor: int = Field(ge=1)
    latent_channels: int = Field(ge=1)
    degradation_axes: tuple[Axis, ...] = Field(max_length=2)
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

        `sizes` compares the sizes of all files and the hashes of the small ones; `hashes` reads every file.

        Raises:
            BundleError: naming all problems found: of the manifest's text, or of its fields, or of the files.
        """
        manifest = cls.parse(folder)
        problems = list(file_problems(folder, manifest.files, manifest.graph_folders(), check == "hashes"))
        if problems:
            raise BundleError(
                f"{folder} is not the bundle its manifest describes: {'; '.join(problems)}; "
                "copy the bundle again or rebuild it with s3diff-export build"
            )
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically. Raises `JobError` when the disk refuses."""
        write_text(folder / MANIFEST_NAME, self.model_dump_json(indent=2) + "\n")

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales that the bundle has graphs for, ascending."""
        if "enlarge" not in self.stages:
            return (self.scale,)
        return tuple(scale for scale in SCALES if scale_key(scale) in self.stages["enlarge"].graphs)

    @property
    def is_adjustable(self) -> bool:
        """Whether pictures can have pixel and semantic strengths; the UNet then has a graph for each pass."""
        return FAMILIES[self.family].is_adjustable(self.lora_mode)

    def ordered_stages(self) -> Iterator[tuple[str, StageKind]]:
        """The stages that the bundle has, in the order in which they feed each other."""
        return ((name, kind) for name, kind in STAGES.items() if name in self.stages)

    def weights_stage(self, stage: str) -> str | None:
        """The stage that computes weights which this one reads; None where its graphs hold all of them."""
        read = {kind_of(tensor.name) for tensor in self.stages[stage].inputs}
        of_layers = {name for name in read if name in TENSORS and TENSORS[name].by_layer}
        return next((name for name, kind in self.ordered_stages() if of_layers & {*kind.gives}), None)

    def graph_files(self, graph: str) -> dict[str, FileRecord]:
        """The files of a graph or an engine: itself, and the weights beside it where it has some."""
        return {name: self.files[name] for name in (graph, f"{graph}.data") if name in self.files}

    def graph_folders(self) -> set[str]:
        """The folders, relative to the bundle, that hold graphs or engines."""
        graphs = [graph for stage in self.stages.values() for graph in stage.graphs.values()]
        engines = [engine for each in self.engines for engine in each.paths()]
        return {str(PurePosixPath(path).parent) for path in graphs + engines}

    @classmethod
    def parse(cls, folder: Path) -> Self:
        """Read the manifest alone, without the files that it names. Raises `BundleError` for what it says."""
        path = folder / MANIFEST_NAME
        rebuild = "rebuild the bundle with s3diff-export build"
        try:
            if not folder.exists():
                tidy_up(folder.parent, again=True)  # a build that was killed may have moved it aside
            with opened_inside(folder.resolve(), MANIFEST_NAME) as file:
                text = file.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES >> 20} MiB")
            # It refuses what those who show it could not: deep nests, text that is none.
            content = from_json(text)
        except FileNotFoundError as error:
            if not folder.exists():
                raise BundleError(f"{folder} does not exist; expected the folder of a bundle") from error
            raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST_NAME}; {rebuild}") from error
        except (OSError, RuntimeError) as error:
            reason = unreadable(error) if isinstance(error, OSError) else f"cannot be read ({error})"
            raise BundleError(f"{path} {reason}; {rebuild}") from error
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
            problems = "; ".join(wrong_fields(error))
            raise BundleError(f"{path} is not a valid manifest: {problems}; {rebuild}") from error

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        parts = (self._field_problems, self._stage_problems, self._wiring_problems, self._engine_problems)
        problems = "; ".join(problem for part in parts for problem in part())
        if problems:
            raise ValueError(problems)
        return self

    def _field_problems(self) -> Iterator[str]:
        family, axes = FAMILIES[self.family], set(self.degradation_axes)
        if not len(axes) == len(self.degradation_axes) == (2 if family.estimates else 0):
            expected = "noise and blur, each once" if family.estimates else f"none for {self.family}"
            yield f"degradation_axes is {list(self.degradation_axes)}, expected {expected}"
        if family.has_bins(self.lora_mode) != bool(self.bins):
            alone = " and ".join(mode for mode, traits in LORA_MODES.items() if traits.has_bins)
            yield f"lora_mode {self.lora_mode} with {len(self.bins)} bins, expected bins for {alone} alone"
        names = [bin.name for bin in self.bins]
        if len(set(names)) != len(names) or SHARED in names:
            yield f"names of bins must differ from each other and from {SHARED!r}, found {names}"
        if self.prompts.mode == "runtime" and None in (self.prompts.tokenizer, self.prompts.max_length):
            yield "prompts of mode runtime need tokenizer and max_length"
        if self.prompts.tokenizer is not None and self.prompts.tokenizer not in self.files:
            yield f"prompts.tokenizer {self.prompts.tokenizer!r} is missing in files"

    def _stage_problems(self) -> Iterator[str]:
        read = {kind_of(tensor.name) for stage in self.stages.values() for tensor in stage.inputs}
        wanted = {
            **{name: not read.isdisjoint(kind.gives) for name, kind in STAGES.items() if kind.gives_weights},
            "text_encoder": self.prompts.mode == "runtime",
            "estimator": FAMILIES[self.family].estimates,
            "modulation": not read.isdisjoint(STAGES["modulation"].may_give),
            "enlarge": "enlarged" in read,
        }
        expected = {
            name
            for name, kind in STAGES.items()
            if not kind.optional or kind.color_fix in self.color_fixes or wanted.get(name)
        }
        for name in sorted(expected ^ set(self.stages)):
            yield f"stage {name} is {'missing' if name in expected else 'not expected'}"
        bins, scales = {bin.name for bin in self.bins}, {scale_key(scale) for scale in SCALES}
        for name, stage in self.stages.items():
            keys = set(stage.graphs)
            if name in STAGES and STAGES[name].by_scale:
                fits, expected_keys = scale_key(self.scale) in keys <= scales, f"some of {sorted(scales)}"
            elif self.is_adjustable and name == "unet":
                fits, expected_keys = keys == set(PASSES), f"{SHARED!r} or each of {sorted(PASSES)}"
            else:
                fits, expected_keys = keys in ({SHARED}, bins), f"{SHARED!r} or every bin"
            if not fits:
                yield f"stage {name} has graphs for {sorted(keys)}, expected {expected_keys}"
            for graph in stage.graphs.values():
                if graph not in self.files:
                    yield f"graph {graph!r} of stage {name} is missing in files"

    def _wiring_problems(self) -> Iterator[str]:
        """Every stage reads what the host or a stage before it gives, under the right type."""
        given: dict[str, TensorSpec | None] = {name: None for name, kind in TENSORS.items() if kind.from_host}
        if self.guidance.mode == "off":
            del given["guidance"]
        for name, kind in self.ordered_stages():
            stage = self.stages[name]
            inputs, outputs = (
                {kind_of(tensor.name) for tensor in part} for part in (stage.inputs, stage.outputs)
            )
            if kind.reads_one_of and inputs.isdisjoint(kind.reads_one_of):
                yield f"stage {name} lacks the input {' or '.join(kind.reads_one_of)}"
            for what, missing in (
                ("the input", set(kind.reads) - inputs),
                ("the output", set(kind.gives) - outputs),
                ("anything that makes its input", {tensor.name for tensor in stage.inputs} - given.keys()),
            ):
                for tensor in sorted(missing):
                    yield f"stage {name} lacks {what} {tensor}"
            for spec in (*stage.inputs, *stage.outputs):
                made = given.get(spec.name)
                if made is not None and kind_of(spec.name) != spec.name and made != spec:
                    found, expected = (f"{each.dtype} {list(each.shape)}" for each in (spec, made))
                    yield f"{spec.name} of stage {name} is {found}, and what gives it says {expected}"
                tensor_kind = TENSORS.get(spec.name)
                if tensor_kind is not None and not _is_of_kind(spec, tensor_kind):
                    found = f"{spec.dtype} {list(spec.shape)}"
                    expected = f"{tensor_kind.dtype} {list(tensor_kind.axes)}"
                    yield f"{spec.name} of stage {name} is {found}, expected {expected}"
            given |= {spec.name: spec for spec in stage.outputs}
        unet = {tensor.name for tensor in self.stages["unet"].inputs} if "unet" in self.stages else set()
        for tensor, wanted in (
            ("guidance", self.guidance.mode == "on"),
            ("pixel_scale", self.is_adjustable),
            ("semantic_scale", self.is_adjustable),
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


def chosen_keys(scale: int, strengths: Strengths | None, bin: str | None = None) -> frozenset[str]:
    """The names of graphs that serve a scale, a picture's strengths, and a bin, see `Bundle.key`."""
    chosen = (scale_key(scale), strengths and strengths.passes, bin)
    return frozenset(key for key in chosen if key is not None)


def place_of(stage: str, key: str) -> str:
    """Where a stage's graph of that key lies, below the folder of graphs or of engines; without suffix."""
    if key == SHARED:
        return stage
    folder = "scales" if STAGES[stage].by_scale else "passes" if key in PASSES else "bins"
    return f"{folder}/{key}/{stage}"


def recorded(folder: Path) -> dict[str, FileRecord]:
    """What a manifest says of the files below a folder, by their paths in it."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(sha256=sha256(path), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _is_of_kind(spec: TensorSpec, kind: TensorKind) -> bool:
    """Whether a tensor has the type and the fixed sizes of its kind; its named axes may have any size."""
    sizes: list[tuple[int | str, int | str]] = list(zip(spec.shape, kind.axes, strict=False))
    fixed = all(isinstance(axis, str) or size == axis for size, axis in sizes)
    return spec.dtype == kind.dtype and len(spec.shape) == len(kind.axes) and fixed
