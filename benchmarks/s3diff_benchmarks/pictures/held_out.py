"""Photographs that a network was never trained on: how well it restores them, and the figures of its card.

Every photograph is degraded by the training pipeline, with fixed seeds, so that anyone measures the same
again. Beside the scores stand figures that find what scores miss: grids of a strided network, flat colours
that do not stay flat, a degradation score that does nothing when it is set by hand (the paper's figure 11),
and an estimator that guesses.
"""

from collections.abc import Iterator, Mapping
from itertools import pairwise, product
from operator import ge, le, lt
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from s3diff_benchmarks.methods import Input, Method
from s3diff_benchmarks.pictures.measuring import GRIDS, ImageSet, Measured
from s3diff_benchmarks.pictures.pairs import Case
from s3diff_benchmarks.report.layouts import table
from s3diff_benchmarks.report.model import Table
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import counted
from s3diff_runtime.vocabulary import SCALE
from s3diff_training.metrics import PATCH, high_frequency_energy

if TYPE_CHECKING:
    from s3diff_training.network.estimator import DegradationEstimator

SEEDS = (0, 1, 2)
NOISE_SCORES = (0.0, 0.5, 1.0)
SIZE = 512
"""Longest side of a truth."""
CROPS, CROP = 128, 256
"""Number and largest side of those that the estimator is measured on."""
FLATS = {"black": 0, "grey": 128, "white": 255}
"""Flat pictures, all of one grey level, of half `SIZE` a side."""


def held_out_images(folder: Path, limit: int | None = None) -> ImageSet:
    """Degrade the photographs of a folder, each with every seed.

    The folder is searched at every depth; `limit` takes only so many photographs, the first by name.

    Raises:
        RequestError: when there is no photograph of 64 pixels a side or more.
    """
    from s3diff_training.data import PhotographFolder, to_uint8
    from s3diff_training.train.pairs import held_out_pairs

    photographs = PhotographFolder(folder, PATCH, memory_mib=0)
    photographs.paths = photographs.paths[:limit]
    pairs = held_out_pairs(photographs, SEEDS, SIZE)
    cases = [Case(pair.name, to_uint8(pair.lr), to_uint8(pair.hr)) for pair in pairs]
    return ImageSet(
        tuple(cases),
        prefix="held-out-",
        titled=f", of held-out photographs degraded with {len(SEEDS)} seeds each",
        seeds=len(SEEDS),
    )


class Compared(NamedTuple):
    """Mean scores by label, of a network and of bicubic interpolation on the same images."""

    ours: Mapping[str, float]
    bicubic: Mapping[str, float]

    @property
    def lpips_ratio(self) -> float:
        """Our LPIPS over bicubic's; lower is better."""
        return self.ours["LPIPS"] / self.bicubic["LPIPS"]


def measure_network(
    estimator: "DegradationEstimator",
    method: Method,
    folder: Path,
    held_out: Measured,
    pairs: Measured | None,
) -> Iterator[Table]:
    """What scores do not say of a network, and the targets that it meets or misses.

    Args:
        estimator: of the network that `method` runs, on its device.
        folder: of the held-out photographs, on which `held_out` was measured.
        pairs: on real pairs, which have targets of their own.
    """
    from s3diff_training.train.estimator import degraded_crops, rank_correlation

    detail = _fine_detail(method, held_out.images)
    yield table("detail", detail.items())
    shortest = SCALE * min(min(open_photograph(case.lr).size) for case in held_out.images.cases)
    crops = degraded_crops(folder, CROPS, min(CROP, shortest))
    spearman = rank_correlation(estimator, crops)
    yield table("estimator", spearman.items(), crops=CROPS)
    if "LPIPS" in held_out.scores.labels:
        of_pairs = _compared(pairs, method) if pairs else None
        flatness = max(_off_level(method, level) for level in FLATS.values())
        yield target_table(_compared(held_out, method), of_pairs, detail, spearman, flatness)


def _fine_detail(method: Method, images: ImageSet) -> dict[float, float]:
    """By the noise score set by hand, the mean power above half the Nyquist frequency in levels²."""
    found: dict[float, list[float]] = {noise: [] for noise in NOISE_SCORES}
    trials = [*product(NOISE_SCORES, images.cases[:: images.seeds])]
    with counted(len(trials), "control") as tell:
        for number, (noise, case) in enumerate(trials):
            tell(number, f"noise score {noise}: {case.name}")
            (result,) = method([Input(open_photograph(case.lr).pixels)], noise=noise)
            found[noise].append(high_frequency_energy(result.pixels))
    return {noise: float(np.mean(energies)) for noise, energies in found.items()}


def _off_level(method: Method, level: int) -> int:
    """How far any value of a flat picture is off its grey level afterwards, in levels."""
    side = SIZE // 2 // SCALE
    (result,) = method([Input(np.full((side, side, 3), level, np.uint8))])
    return int(np.abs(result.pixels.astype(int) - level).max())


def _compared(measured: Measured, method: Method) -> Compared:
    ours = next(row for row in measured.rows if row.method is method)
    return Compared(ours.means, measured.rows[0].means)


def target_table(
    held_out: Compared,
    pairs: Compared | None,
    detail: Mapping[float, float],
    spearman: Mapping[str, float],
    flatness: float,
) -> Table:
    """What a good model reaches; a target that is missed is shown and is no error.

    `pairs` are real ones, where some were given; `detail` is by the noise score set by hand, rising, and
    `spearman` by axis the rank correlation of estimated and true levels; `flatness` is the largest error
    on flat black, grey and white, in levels.
    """
    ours, bicubic = held_out
    lowest = bicubic["PSNR-Y"] - 0.1
    step = max(after / before for before, after in pairwise(detail.values()))
    targets = [
        ("held-out PSNR-Y, dB (limit: bicubic's - 0.1), at least", ours["PSNR-Y"], ge, lowest),
        ("held-out LPIPS / bicubic's, at most", held_out.lpips_ratio, le, 0.56),
    ]
    if pairs is not None:
        targets.append(("real pairs: LPIPS / bicubic's, at most", pairs.lpips_ratio, le, 0.675))
        targets.append(("real pairs: PSNR-Y, dB, at least", pairs.ours["PSNR-Y"], ge, 26.5))
    targets += [
        *((f"grid of period {period}, at most", ours[label], le, 1.5) for period, label in GRIDS.items()),
        (f"flat {', '.join(FLATS)}: largest error, levels, at most", flatness, le, 3),
        ("fine detail, next noise score / this one", step, lt, 1.0),
        ("Spearman, noise, at least", spearman["noise"], ge, 0.85),
        ("Spearman, blur, at least", spearman["blur"], ge, 0.75),
    ]
    # NaN meets no limit.
    return table(
        "targets",
        [
            (name, limit, figure, "met" if meets(figure, limit) else "MISSED")
            for name, figure, meets, limit in targets
        ],
    )


def write_picture(held_out: Measured, method: Method, path: Path) -> None:
    """Write a sheet of held-out photographs: low resolution, bicubic, what the method made, truth.

    Raises:
        JobError: when the disk refuses.
    """
    from s3diff_training.data import contact_sheet, from_uint8

    columns = [row.shown for row in held_out.rows if row is held_out.rows[0] or row.method is method]
    rows = []
    for place in held_out.images.shown:
        case = held_out.images.cases[place]
        pictures = (case.lr, *(column[place] for column in columns), case.hr)
        rows.append([from_uint8(pixels) for pixels in pictures if isinstance(pixels, np.ndarray)])
    contact_sheet(rows, ("low resolution", "bicubic", "ours", "high resolution"), path)
