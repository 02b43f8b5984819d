"""How far what runs is from what PyTorch computes exactly: bins, precision and mode, engines, tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from s3diff_benchmarks.pictures.difference import COLUMNS, NOTE, Difference
from s3diff_benchmarks.pictures.drawn import draw_picture, middle
from s3diff_benchmarks.pictures.pairs import pixels_of
from s3diff_benchmarks.pictures.quality import bundle_names
from s3diff_benchmarks.pictures.restorers import exact, pytorch_notes, torch_device
from s3diff_benchmarks.report.findings import BundlesRequest, Findings
from s3diff_benchmarks.report.model import Cell, Column, Plot, Table
from s3diff_benchmarks.report.output import Output
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import BundleError, RequestError
from s3diff_runtime.options import group, option
from s3diff_runtime.progress import counted
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.weights import ModelSource

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

BIN_SIDES = (1, 2, 3, 4, 6)
OVERLAPS = (0, 8, 16, 32, 64)
NO_WEIGHTS = "bins and bundles were not compared with PyTorch: pass --demo, or --base and --checkpoint"
_ERROR_LABEL = "error (levels of 255)"
_BINS_PLOT = Plot(
    name="bins",
    title="Error of the nearest bin",
    kind="line",
    table="bins",
    x="bins",
    y="error",
    y_label=_ERROR_LABEL,
    log_x=True,
    from_zero=True,
)
_TILES_PLOT = Plot(
    name="tiles",
    title="Error of tiles",
    kind="line",
    table="tiles",
    x="overlap",
    y="error",
    by="tile",
    x_label="overlap (low-resolution pixels)",
    y_label=_ERROR_LABEL,
    from_zero=True,
)


@dataclass(frozen=True)
class FidelityRequest(BundlesRequest):
    """What is compared, and how thoroughly."""

    weights: ModelSource = group(ModelSource)
    images: tuple[Path, ...] = option(
        (), "Photograph to compare on; repeatable. Drawn by default.", flags=("--image",), repeated=True
    )
    device: str = option("cpu", "cpu, cuda or cuda:N.")
    quick: bool = option(False, "Fewer and smaller images, for an indication within a minute.")
    seed: int = option(0, "Of the degradations and the drawn pictures.")
    output: Output = group(Output)

    @property
    def side(self) -> int:
        """Of the images that are compared with PyTorch, low-resolution pixels."""
        return 32 if self.quick else 48

    @property
    def log_points(self) -> int:
        """Binary logarithm of the number of degradations for each image."""
        return 2 if self.quick else 4

    @property
    def tiles(self) -> tuple[int, ...]:
        """Sides of tiles that are compared with none."""
        return (32,) if self.quick else (64, 128)

    @property
    def tiled_side(self) -> int:
        """Of the image that is cut into tiles."""
        return 80 if self.quick else 192


class Trial(NamedTuple):
    """One image, by its place, and the scores that it is restored with."""

    image: int
    noise: float
    blur: float


Exact = Callable[[Trial], Pixels]
"""What PyTorch makes of a trial: uint8 RGB `[4H, 4W, 3]`."""


def run_fidelity(request: FidelityRequest) -> Findings:
    """Load what the request names, and compare it.

    Raises:
        RequestError, BundleError, JobError: when a bundle runs with no engine at all.
    """
    photographs = [pixels_of(path) for path in request.images]
    on = torch_device(request.device)
    network = request.weights.load().to(on) if request.weights.named else None
    findings = measure_fidelity(request, photographs, network)
    return findings.noting(*pytorch_notes(request.weights, request.device, on, request.bundles))


def measure_fidelity(request: FidelityRequest, images: Sequence[Pixels], network: S3Diff | None) -> Findings:
    """Compare everything that the request and the machine allow.

    Args:
        request: what to compare.
        images: photographs, uint8 RGB `[H, W, 3]`; none draws pictures.
        network: of the bundles' weights, in fp32; None compares tiles alone.

    Raises:
        RequestError, BundleError, JobError: when a bundle runs with no engine at all.
    """
    for folder in request.bundles:
        Upscaler.open(folder, "auto", request.device).close()
    notes = [] if images else ["the images were drawn: 1/f noise, edges and a little noise"]
    tables, plots = [], []
    if network is None:
        notes.append(NO_WEIGHTS)
    else:
        small = _cut(images, request.side) or _drawn(request, request.side, 2)
        trials = [Trial(place, *point) for place in range(len(small)) for point in _points(request)]
        result = _remembered(network, small)
        bins = measure_bins(result, trials)
        compared, left_out = _bundles(request, result, small, trials)
        notes += left_out
        tables += [_bin_table(bins, len(trials)), _bundle_table(compared)]
        plots.append(_BINS_PLOT)
        plots += _bundle_plot(compared)
    large = _cut(images[:1], request.tiled_side) or _drawn(request, request.tiled_side, 1)
    tiles, left_out = _tiles(request, large[0])
    notes += left_out
    if tiles:
        tables.append(_tile_table(tiles, large[0]))
        plots.append(_TILES_PLOT)
    return Findings(tables=tuple(tables), plots=tuple(plots), notes=tuple(notes))


def _cut(images: Sequence[Pixels], side: int) -> list[Pixels]:
    return [np.ascontiguousarray(middle(image, side)) for image in images]


def _drawn(request: FidelityRequest, side: int, count: int) -> list[Pixels]:
    return [draw_picture(side, side, request.seed + number) for number in range(count)]


def _points(request: FidelityRequest) -> list[tuple[float, float]]:
    """Degradations (noise, blur) of a scrambled Sobol sequence: drawn, and yet evenly spread over [0, 1)²."""
    from scipy.stats.qmc import Sobol

    drawn = Sobol(2, rng=np.random.default_rng(request.seed)).random_base2(request.log_points)
    return [(float(noise), float(blur)) for noise, blur in drawn]


def _remembered(network: S3Diff, images: Sequence[Pixels]) -> Exact:
    """PyTorch's results; grids share centres, and bundles and bins are compared with the same ones."""

    @cache
    def result(trial: Trial) -> Pixels:
        return exact(network, images[trial.image], trial.noise, trial.blur)[0]

    return result


# --- bins -----------------------------------------------------------------------------------------


def nearest_centre(score: float, side: int) -> float:
    """The centre of the cell that holds a score, on an axis cut into equal cells."""
    return (min(int(score * side), side - 1) + 0.5) / side


def measure_bins(result: Exact, trials: Sequence[Trial]) -> dict[int, Difference]:
    """By the side of a square grid: nearest-bin results against exact ones.

    Merged weights are exact at a bin's centre, so PyTorch with the centre's scores stands for them.
    """
    found = {}
    with counted(len(BIN_SIDES) * len(trials), "fidelity") as tell:
        for number, side in enumerate(BIN_SIDES):
            pairs = []
            for place, trial in enumerate(trials):
                tell(number * len(trials) + place, f"bins: {side}×{side}")
                noise, blur = (nearest_centre(score, side) for score in (trial.noise, trial.blur))
                pairs.append((result(Trial(trial.image, noise, blur)), result(trial)))
            found[side] = Difference.of(pairs)
    return found


def _bin_table(found: Mapping[int, Difference], count: int) -> Table:
    return Table(
        name="bins",
        title="Nearest bin against exact weights, both in PyTorch fp32",
        columns=(Column(name="grid"), Column(name="bins"), *COLUMNS),
        rows=tuple((f"{side}×{side}", side * side, *found[side].cells) for side in found),
        note=f"Over {count} pairs of image and degradation, spread evenly over [0, 1]². {NOTE}",
    )


# --- bundles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Compared:
    """A bundle on one engine, and its difference from PyTorch."""

    name: str
    engine: str
    manifest: Manifest
    difference: Difference


def _bundles(
    request: FidelityRequest, result: Exact, images: Sequence[Pixels], trials: Sequence[Trial]
) -> tuple[list[_Compared], list[str]]:
    """Every bundle, on every engine that runs here, against PyTorch in fp32; and what did not run."""
    compared, left_out = [], []
    for name, folder in zip(bundle_names(request.bundles), request.bundles, strict=True):
        manifest = Manifest.read(folder)
        for engine in dict.fromkeys(["onnx", *(engines.identity.flavour for engines in manifest.engines)]):
            try:
                upscaler = Upscaler.open(folder, engine, request.device)
            except (RequestError, BundleError) as error:
                left_out.append(f"{name} was not run with {engine}: {error}")
                continue
            with upscaler, counted(len(trials), "fidelity") as tell:
                pairs = []
                for place, trial in enumerate(trials):
                    tell(place, f"{name}: {engine}")
                    answer = upscaler.upscale_pixels(
                        [images[trial.image]], noise=trial.noise, blur=trial.blur
                    )
                    pairs.append((answer[0].pixels, result(trial)))
            compared.append(_Compared(name, upscaler.engine, manifest, Difference.of(pairs)))
    return compared, left_out


def _bundle_table(compared: Sequence[_Compared]) -> Table:
    headings = ("bundle", "engine", "mode", "precision", "bins")
    rows: list[tuple[Cell, ...]] = []
    for one in compared:
        bins = len(one.manifest.bins) or None
        facts = (one.name, one.engine, one.manifest.lora_mode, one.manifest.precision, bins)
        rows.append((*facts, *one.difference.cells))
    return Table(
        name="bundles",
        title="Bundles against PyTorch fp32",
        columns=(*(Column(name=heading) for heading in headings), *COLUMNS),
        rows=tuple(rows),
        key=2,
        note=f"Images and degradations as above; a merged bundle answers with its nearest bin. {NOTE}",
    )


def _bundle_plot(compared: Sequence[_Compared]) -> Iterator[Plot]:
    """Error against precision, one line for each mode, number of bins and engine."""
    if compared:
        yield Plot(
            name="precision",
            title="Error of bundles",
            kind="line",
            table="bundles",
            x="precision",
            y="error",
            by=("mode", "bins", "engine"),
            y_label=_ERROR_LABEL,
            # Bins and precision are orders of magnitude apart; equal images have no place on such an axis.
            log_y=all(one.difference.root > 0 for one in compared),
        )


# --- tiles ----------------------------------------------------------------------------------------


def _tiles(request: FidelityRequest, picture: Pixels) -> tuple[dict[int, dict[float, Difference]], list[str]]:
    """By side and overlap: tiles against the image in one piece, with the same bundle at the same scores."""
    cuts = [(tile, overlap) for tile in request.tiles for overlap in OVERLAPS if 2 * overlap <= tile]
    found: dict[int, dict[float, Difference]] = {}
    left_out = []
    with counted(len(cuts) + 1, "fidelity") as tell:
        tell(0, "tiles: none")
        try:
            whole = _upscaled(request, picture, 0, None)
        except RequestError as error:
            return {}, [f"tiles were not compared: the image does not run in one piece ({error})"]
        for number, (tile, overlap) in enumerate(cuts, start=1):
            tell(number, f"tiles: of {tile}, overlap {overlap}")
            try:
                cut = _upscaled(request, picture, tile, overlap)
            except RequestError as error:
                left_out.append(f"tiles of {tile} with overlap {overlap} were not compared: {error}")
                continue
            found.setdefault(tile, {})[overlap] = Difference.of([(cut, whole)])
    return found, left_out


def _upscaled(request: FidelityRequest, picture: Pixels, tile: int, overlap: int | None) -> Pixels:
    options = UpscaleOptions(tile=tile, overlap=overlap, batch=1)
    with Upscaler.open(request.bundle, "auto", request.device, options) as upscaler:
        return upscaler.upscale_pixels([picture], noise=0.5, blur=0.5)[0].pixels


def _tile_table(found: Mapping[int, Mapping[float, Difference]], picture: Pixels) -> Table:
    height, width = picture.shape[:2]
    return Table(
        name="tiles",
        title=f"Tiles against an image of {width}×{height} in one piece",
        columns=(Column(name="tile", unit="pixels"), Column(name="overlap", unit="pixels"), *COLUMNS),
        rows=tuple(
            (tile, overlap, *difference.cells)
            for tile, line in found.items()
            for overlap, difference in line.items()
        ),
        key=2,
        note=f"With the bundle itself, at noise 0.5 and blur 0.5; sizes in low-resolution pixels. {NOTE}",
    )
