"""How far what runs is from what PyTorch computes exactly: bins, precision and mode, engines, tiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from s3diff_benchmarks.methods import Input, bundle_names
from s3diff_benchmarks.pictures.pixels import NOTE, differences, middle
from s3diff_benchmarks.report.findings import BundlesRequest, Findings
from s3diff_benchmarks.report.layouts import plot, table
from s3diff_benchmarks.report.model import Cell, Plot, Table
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.engines.devices import Device
from s3diff_runtime.engines.flavours import FLAVOURS
from s3diff_runtime.errors import RequestError
from s3diff_runtime.options import option
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import counted
from s3diff_runtime.settings import UpscaleSettings
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler
from s3diff_runtime.vocabulary import Pixels
from s3diff_training.drawn_pictures import draw_picture

if TYPE_CHECKING:
    from s3diff_training.network.model import S3Diff

BIN_SIDES = (1, 2, 3, 4, 6)
OVERLAPS = (0, 8, 16, 32, 64)
NO_WEIGHTS = "bins and bundles were not compared with PyTorch: pass --demo, or --base and --checkpoint"


class Effort(NamedTuple):
    """How much is compared; sides in low-resolution pixels."""

    side: int
    """Of the images that are compared with PyTorch."""
    log_points: int
    """Binary logarithm of the number of degradations for each image."""
    tiles: tuple[int, ...]
    """Sides of tiles that are compared with none."""
    tiled_side: int
    """Of the image that is cut into tiles."""


@dataclass(frozen=True)
class FidelityRequest(BundlesRequest):
    """What is compared, and how thoroughly."""

    images: tuple[Path, ...] = option(
        (), "Photograph to compare on; repeatable. Drawn by default.", flags=("--image",), repeated=True
    )
    quick: bool = option(False, "Fewer and smaller images, for an indication within a minute.")
    seed: int = option(0, "Of the degradations and the drawn pictures.")

    @property
    def effort(self) -> Effort:
        """How much is compared."""
        return Effort(32, 2, (32,), 80) if self.quick else Effort(48, 4, (64, 128), 192)


class Trial(NamedTuple):
    """One image, by its place, and the scores that it is restored with."""

    image: int
    noise: float
    blur: float


Exact = Callable[[Trial], Pixels]
"""What PyTorch makes of a trial, `[4H, 4W, 3]`."""


def run_fidelity(request: FidelityRequest) -> Findings:
    """Measure how far BUNDLE is from what PyTorch computes in fp32, and what brings it there.

    The error of the nearest bin against the number of bins; of each bundle, with its mode and precision,
    on every engine that runs here; and of tiles against the image in one piece, by their overlap.
    Without weights (--demo, or --base and --checkpoint) only tiles can be compared.

    \b
      s3diff-export bench fidelity dynamic-fp16.bundle --vs merged-fp16.bundle --demo -o fidelity
    """
    from s3diff_benchmarks.pytorch_method import pytorch_notes, torch_device

    photographs = [open_photograph(path).pixels for path in request.images]
    on = torch_device(request.device)
    network = request.weights.load_s3diff("bench fidelity").to(on) if request.weights.named else None
    findings = measure_fidelity(request, photographs, network)
    return findings.noting(*pytorch_notes(request.weights, request.device, on, request.bundles))


def measure_fidelity(
    request: FidelityRequest, images: Sequence[Pixels], network: "S3Diff | None"
) -> Findings:
    """Compare everything that the request and the machine allow.

    `images` are photographs, none draws pictures; `network` is of the bundles' weights, in fp32, and without
    it tiles alone are compared.

    Raises:
        RequestError, BundleError, JobError: when a bundle runs with no engine at all.
    """
    for folder in request.bundles:
        Upscaler.open(folder, "auto", request.device).close()
    notes = [] if images else ["the images were drawn: 1/f noise, edges and a little noise"]
    tables: list[Table] = []
    if network is None:
        notes.append(NO_WEIGHTS)
    else:
        small = _cut_or_drawn(images, request.effort.side, 2, request.seed)
        trials = [Trial(place, *point) for place in range(len(small)) for point in _points(request)]
        exact = _remembered(network, small)
        tables += [compare_bins(exact, trials), _compare_bundles(request, exact, small, trials, notes)]
    (large,) = _cut_or_drawn(images[:1], request.effort.tiled_side, 1, request.seed)
    tables.append(_compare_tiles(request, large, notes))
    tables = [each for each in tables if each.rows]
    return Findings(tuple(tables), plots=tuple(map(_plot, tables)), notes=tuple(notes))


def _cut_or_drawn(images: Sequence[Pixels], side: int, count: int, seed: int) -> list[Pixels]:
    """The middles of images; of none, so many drawn ones."""
    cut = [np.ascontiguousarray(middle(image, side)) for image in images]
    return cut or [draw_picture(side, side, seed + number) for number in range(count)]


def _points(request: FidelityRequest) -> list[tuple[float, float]]:
    """Degradations (noise, blur) of a scrambled Sobol sequence: drawn, and yet evenly spread over [0, 1)²."""
    from scipy.stats.qmc import Sobol

    drawn = Sobol(2, rng=np.random.default_rng(request.seed)).random_base2(request.effort.log_points)
    return [(float(noise), float(blur)) for noise, blur in drawn]


def _remembered(network: "S3Diff", images: Sequence[Pixels]) -> Exact:
    """PyTorch's results; grids share centres, and bundles and bins are compared with the same ones."""
    from s3diff_benchmarks.pytorch_method import exact

    method = exact(network)
    return cache(lambda trial: method([Input(images[trial.image])], trial.noise, trial.blur)[0].pixels)


def nearest_centre(score: float, side: int) -> float:
    """The centre of the cell that holds a score, on an axis cut into equal cells."""
    return (min(int(score * side), side - 1) + 0.5) / side


def compare_bins(exact: Exact, trials: Sequence[Trial]) -> Table:
    """Nearest-bin results against exact ones, for square grids of bins.

    Merged weights are exact at a bin's centre, so PyTorch with the centre's scores stands for them.
    """
    rows: list[tuple[Cell, ...]] = []
    with counted(len(BIN_SIDES) * len(trials), "fidelity") as tell:
        for side in BIN_SIDES:
            pairs: list[tuple[Pixels, Pixels]] = []
            for image, *scores in trials:
                tell(len(rows) * len(trials) + len(pairs), f"bins: {side}×{side}")
                centre = Trial(image, *(nearest_centre(score, side) for score in scores))
                pairs.append((exact(centre), exact(Trial(image, *scores))))
            rows.append((f"{side}×{side}", side * side, *differences(pairs)))
    return table("bins", rows, trials=len(trials), differences=NOTE)


def _compare_bundles(
    request: FidelityRequest, exact: Exact, images: list[Pixels], trials: list[Trial], notes: list[str]
) -> Table:
    """Every bundle, on every engine that runs here, against PyTorch in fp32; notes what did not run."""
    rows: list[tuple[Cell, ...]] = []
    kind = Device.parse(request.device).kind
    graphs = [each.name for each in FLAVOURS.values() if not each.is_compiled and kind in each.devices]
    for name, folder in zip(bundle_names(request.bundles), request.bundles, strict=True):
        manifest = Manifest.read(folder)
        for engine in dict.fromkeys([*graphs, *(engines.identity.flavour for engines in manifest.engines)]):
            try:
                upscaler = Upscaler.open(folder, engine, request.device)
            except RequestError as error:
                notes.append(f"{name} was not run with {engine}: {error}")
                continue
            with upscaler, counted(len(trials), "fidelity") as tell:
                pairs: list[tuple[Pixels, Pixels]] = []
                for trial in trials:
                    tell(len(pairs), f"{name}: {engine}")
                    image = images[trial.image]
                    (result,) = upscaler.upscale_pixels([image], noise=trial.noise, blur=trial.blur)
                    pairs.append((result.pixels, exact(trial)))
            mode, precision, bins = manifest.lora_mode, upscaler.precision, len(manifest.bins) or None
            rows.append((name, upscaler.engine, mode, precision, bins, *differences(pairs)))
    return table("bundles", rows, differences=NOTE)


def _compare_tiles(request: FidelityRequest, picture: Pixels, notes: list[str]) -> Table:
    """Tiles against the image in one piece, same bundle, same scores; notes what did not run."""
    cuts = [(tile, overlap) for tile in request.effort.tiles for overlap in OVERLAPS if 2 * overlap <= tile]
    rows: list[tuple[Cell, ...]] = []
    with counted(len(cuts) + 1, "fidelity") as tell:
        tell(0, "tiles: none")
        try:
            whole = _upscaled(request, picture, 0, None)
        except RequestError as error:
            notes.append(f"tiles were not compared: the image does not run in one piece ({error})")
            cuts = []
        for number, (tile, overlap) in enumerate(cuts, start=1):
            tell(number, f"tiles: of {tile}, overlap {overlap}")
            try:
                cut = _upscaled(request, picture, tile, overlap)
            except RequestError as error:
                notes.append(f"tiles of {tile} with overlap {overlap} were not compared: {error}")
                continue
            rows.append((tile, overlap, *differences([(cut, whole)])))
    height, width = picture.shape[:2]
    return table("tiles", rows, width=width, height=height, differences=NOTE)


def _upscaled(request: FidelityRequest, picture: Pixels, tile: int, overlap: int | None) -> Pixels:
    options = UpscaleOptions(tile=tile, overlap=overlap, batch=1)
    with Upscaler.open(request.bundle, "auto", request.device, options) as upscaler:
        scores: UpscaleSettings = {"noise": 0.5, "blur": 0.5} if upscaler.manifest.degradation_axes else {}
        return upscaler.upscale_pixels([picture], **scores)[0].pixels


def _plot(errors: Table) -> Plot:
    """The errors of a table; equal images have no place on a logarithmic axis."""
    equal = not all(record["error"] for record in errors.records)
    return plot(errors.name, {"log_y": False} if equal else {})
