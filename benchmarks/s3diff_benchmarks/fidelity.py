"""How far what runs is from what PyTorch computes exactly: bins, precision and mode, engines, tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from s3diff_benchmarks.assembly import Findings
from s3diff_benchmarks.drawn import draw_picture
from s3diff_benchmarks.progress import progress
from s3diff_benchmarks.quality import bundle_names
from s3diff_benchmarks.report import Cell, Column, Plot, Series, Table
from s3diff_benchmarks.restorers import exact
from s3diff_runtime.errors import BundleError, RequestError
from s3diff_runtime.manifest import Manifest
from s3diff_runtime.options import UpscaleOptions
from s3diff_runtime.upscaler import Upscaler

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

Pixels = NDArray[np.uint8]
BIN_SIDES = (1, 2, 3, 4, 6)
OVERLAPS = (0, 8, 16, 32, 64)
NO_WEIGHTS = "bins and bundles were not compared with PyTorch: pass --demo, or --base and --checkpoint"


@dataclass(frozen=True)
class FidelityRequest:
    """What is compared, and how thoroughly."""

    bundle: Path
    vs: tuple[Path, ...] = ()
    """More bundles of the same weights."""
    device: str = "cpu"
    quick: bool = False
    """Fewer and smaller images; the figures are then only indications."""
    seed: int = 0
    """Of the degradations and the drawn pictures."""

    @property
    def side(self) -> int:
        """Of the images that are compared with PyTorch, low-resolution pixels."""
        return 32 if self.quick else 64

    @property
    def points(self) -> int:
        """Degradations for each image."""
        return 3 if self.quick else 8

    @property
    def tile(self) -> int:
        """Side of a tile where tiles are compared with none."""
        return 64 if self.quick else 128

    @property
    def tiled_side(self) -> int:
        """Of the image that is cut into tiles."""
        return 112 if self.quick else 224


@dataclass(frozen=True)
class Difference:
    """How two images, or several pairs of them, differ; in levels of 255."""

    squares: tuple[float, ...]
    """Mean squared error of each pair, over R, G and B."""
    largest: int
    """Difference of any two levels."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[Pixels, Pixels]]) -> Difference:
        """Compare pairs of uint8 images of equal shapes; at least one."""
        apart = [first.astype(np.int16) - second for first, second in pairs]
        return cls(
            tuple(float(np.mean(np.square(one, dtype=np.int32))) for one in apart),
            max(int(np.abs(one).max()) for one in apart),
        )

    @property
    def root(self) -> float:
        """Root of the mean squared error, in levels."""
        return float(np.sqrt(np.mean(self.squares)))

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Under `COLUMNS`; PSNR is empty where images are equal."""
        mean, worst = float(np.mean(self.squares)), max(self.squares)
        return self.root, _psnr(mean), _psnr(worst), self.largest


COLUMNS = (
    Column(name="error", unit="levels", better="lower"),
    Column(name="PSNR", unit="dB", better="higher", digits=4),
    Column(name="PSNR of the worst", unit="dB", better="higher", digits=4),
    Column(name="largest difference", unit="levels", better="lower"),
)
_NOTE = "error: root mean square over all pixels and channels, of 255 levels; PSNR is empty for equal images."


def measure_fidelity(request: FidelityRequest, images: Sequence[Pixels], network: S3Diff | None) -> Findings:
    """Compare everything that the request and the machine allow.

    Args:
        request: what to compare.
        images: photographs, uint8 RGB `[H, W, 3]`; none draws pictures.
        network: of the bundles' weights, in fp32; None compares tiles alone.

    Raises:
        RequestError, BundleError, JobError (of the runtime): when the first bundle cannot be opened.
    """
    notes = [] if images else ["the images were drawn: 1/f noise, edges and a little noise"]
    tables, plots = [], []
    if network is None:
        notes.append(NO_WEIGHTS)
    else:
        small = _cut(images, request.side) or [
            draw_picture(request.side, request.side, request.seed + number) for number in range(2)
        ]
        points = _points(request)
        bins = _bins(network, small, points)
        compared, left_out = _bundles(request, network, small, points)
        notes += left_out
        tables += [_bin_table(bins, len(small) * len(points)), compared]
        plots.append(_curve("bins", "Error of the nearest bin", "bins", {n * n: d for n, d in bins.items()}))
    large = _cut(images[:1], request.tiled_side)
    picture = large[0] if large else draw_picture(request.tiled_side, request.tiled_side, request.seed)
    tiles, left_out = _tiles(request, picture)
    notes += left_out
    if tiles:
        tables.append(_tile_table(tiles, picture, request.tile))
        plots.append(_curve("tiles", "Error of tiles", "overlap (low-resolution pixels)", tiles))
    return Findings(tables=tuple(tables), plots=tuple(plots), notes=tuple(notes))


def _cut(images: Sequence[Pixels], side: int) -> list[Pixels]:
    """The middles of images, at most `side` pixels a side."""
    windows = []
    for image in images:
        top, left = (max(length - side, 0) // 2 for length in image.shape[:2])
        windows.append(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return windows


def _points(request: FidelityRequest) -> list[tuple[float, float]]:
    """Degradations (noise, blur), drawn uniformly."""
    drawn = np.random.default_rng(request.seed).uniform(0, 1, (request.points, 2))
    return [(float(noise), float(blur)) for noise, blur in drawn]


# --- bins -----------------------------------------------------------------------------------------


def nearest_centre(score: float, side: int) -> float:
    """The centre of the cell that holds a score, on an axis cut into equal cells."""
    return (min(int(score * side), side - 1) + 0.5) / side


def _bins(
    network: S3Diff, images: Sequence[Pixels], points: Sequence[tuple[float, float]]
) -> dict[int, Difference]:
    """By the side of a square grid: nearest-bin results against exact ones.

    Merged weights are exact at a bin's centre, so PyTorch with the centre's scores stands for them.
    """

    @cache  # grids share centres, and degradations share their nearest one
    def result(index: int, noise: float, blur: float) -> Pixels:
        return exact(network, images[index], noise, blur)[0]

    found = {}
    with progress(len(BIN_SIDES), "fidelity") as tell:
        for number, side in enumerate(BIN_SIDES):
            tell(number, f"bins: {side}×{side}")
            found[side] = Difference.of(
                [
                    (
                        result(index, nearest_centre(noise, side), nearest_centre(blur, side)),
                        result(index, noise, blur),
                    )
                    for index in range(len(images))
                    for noise, blur in points
                ]
            )
    return found


def _bin_table(found: Mapping[int, Difference], count: int) -> Table:
    return Table(
        name="bins",
        title="Nearest bin against exact weights, both in PyTorch fp32",
        columns=(Column(name="grid"), Column(name="bins"), *COLUMNS),
        rows=tuple((f"{side}×{side}", side * side, *found[side].cells) for side in found),
        note=f"Over {count} pairs of image and degradation, drawn uniformly from [0, 1]². {_NOTE}",
    )


# --- bundles --------------------------------------------------------------------------------------


def _bundles(
    request: FidelityRequest,
    network: S3Diff,
    images: Sequence[Pixels],
    points: Sequence[tuple[float, float]],
) -> tuple[Table, list[str]]:
    """Every bundle, on every engine that runs here, against PyTorch in fp32."""
    truths = [[exact(network, image, noise, blur)[0] for noise, blur in points] for image in images]
    rows: list[tuple[Cell, ...]] = []
    notes = []
    bundles = [request.bundle, *request.vs]
    for name, folder in zip(bundle_names(bundles), bundles, strict=True):
        manifest = Manifest.read(folder)
        for engine in dict.fromkeys(["onnx", *(engines.identity.flavour for engines in manifest.engines)]):
            try:
                upscaler = Upscaler.open(folder, engine, request.device)
            except (RequestError, BundleError) as error:
                notes.append(f"{name} was not run with {engine}: {error}")
                continue
            with upscaler:
                pairs = [
                    (upscaler.upscale_pixels([image], noise=noise, blur=blur)[0].pixels, truth)
                    for image, row in zip(images, truths, strict=True)
                    for (noise, blur), truth in zip(points, row, strict=True)
                ]
            facts = (manifest.lora_mode, manifest.precision, len(manifest.bins) or None)
            rows.append((name, upscaler.engine, *facts, *Difference.of(pairs).cells))
    headings = ("bundle", "engine", "mode", "precision", "bins")
    return (
        Table(
            name="bundles",
            title="Bundles against PyTorch fp32",
            columns=(*(Column(name=heading) for heading in headings), *COLUMNS),
            rows=tuple(rows),
            key=2,
            note=f"Images and degradations as above; a merged bundle answers with its nearest bin. {_NOTE}",
        ),
        notes,
    )


# --- tiles ----------------------------------------------------------------------------------------


def _tiles(request: FidelityRequest, picture: Pixels) -> tuple[dict[int, Difference], list[str]]:
    """By overlap: tiles against the image in one piece, with the same bundle at the same scores."""
    found: dict[int, Difference] = {}
    overlaps = [overlap for overlap in OVERLAPS if 2 * overlap <= request.tile]
    with progress(len(overlaps) + 1, "fidelity") as tell:
        tell(0, "tiles: none")
        try:
            whole = _upscaled(request, picture, 0, None)
        except RequestError as error:
            return {}, [f"tiles were not compared: the image does not run in one piece ({error})"]
        for number, overlap in enumerate(overlaps, start=1):
            tell(number, f"tiles: overlap {overlap}")
            found[overlap] = Difference.of([(_upscaled(request, picture, request.tile, overlap), whole)])
    return found, []


def _upscaled(request: FidelityRequest, picture: Pixels, tile: int, overlap: int | None) -> Pixels:
    options = UpscaleOptions(tile=tile, overlap=overlap, batch=1)
    with Upscaler.open(request.bundle, "auto", request.device, options) as upscaler:
        return upscaler.upscale_pixels([picture], noise=0.5, blur=0.5)[0].pixels


def _tile_table(found: Mapping[int, Difference], picture: Pixels, tile: int) -> Table:
    height, width = picture.shape[:2]
    return Table(
        name="tiles",
        title=f"Tiles of {tile} pixels against none, on an image of {width}×{height}",
        columns=(Column(name="overlap", unit="low-resolution pixels"), *COLUMNS),
        rows=tuple((overlap, *difference.cells) for overlap, difference in found.items()),
        note=f"With the bundle itself, at noise 0.5 and blur 0.5. {_NOTE}",
    )


def _curve(name: str, title: str, x_label: str, found: Mapping[int, Difference]) -> Plot:
    return Plot(
        name=name,
        title=title,
        kind="line",
        x_label=x_label,
        y_label="error (levels of 255)",
        series=(
            Series(
                name="root mean square",
                x=tuple(float(x) for x in found),
                y=tuple(difference.root for difference in found.values()),
            ),
        ),
    )


def _psnr(square: float) -> float | None:
    return None if square == 0 else float(10 * np.log10(255**2 / square))
