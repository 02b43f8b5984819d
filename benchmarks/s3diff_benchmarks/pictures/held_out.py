"""Photographs that a network was never trained on: how well it restores them, and the figures of its card.

Every photograph is degraded by the training pipeline, with fixed seeds, so that anyone measures the same
again. Beside the scores stand figures that find what scores miss: grids of a strided network, a degradation
score that does nothing when it is set by hand (the paper's figure 11), and an estimator that guesses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from s3diff_benchmarks.methods import Input, Method
from s3diff_benchmarks.pictures.measuring import GRIDS, ImageSet, Measured
from s3diff_benchmarks.pictures.pairs import Case
from s3diff_benchmarks.pictures.scores import DETAIL
from s3diff_benchmarks.report.model import Column, Table
from s3diff_runtime.pictures.photograph import open_photograph
from s3diff_runtime.progress import counted
from s3diff_runtime.vocabulary import SCALE
from s3diff_training.metrics import PATCH, high_frequency_energy

if TYPE_CHECKING:
    from s3diff_training.network import S3Diff

SEEDS = (0, 1, 2)
NOISE_SCORES = (0.0, 0.5, 1.0)
SIZE = 512
"""Longest side of a truth."""
CROPS, CROP = 128, 256
"""Number and largest side of those that the estimator is measured on."""


def held_out_images(folder: Path, limit: int | None = None) -> ImageSet:
    """Degrade the photographs of a folder, each with every seed.

    Args:
        folder: searched at every depth.
        limit: take only that many photographs, the first by name.

    Raises:
        RequestError: when there is no photograph of 64 pixels a side or more.
    """
    from s3diff_training.data import PhotographFolder, to_uint8
    from s3diff_training.degradations import DegradationPipeline
    from s3diff_training.train.validation import held_out_pairs

    photographs = PhotographFolder(folder, PATCH, memory_mib=0)
    pairs = held_out_pairs(photographs, DegradationPipeline(scale=SCALE), SEEDS, SIZE)
    cases = [Case(pair.name, to_uint8(pair.lr), to_uint8(pair.hr)) for pair in pairs]
    return ImageSet(
        tuple(cases[: None if limit is None else limit * len(SEEDS)]),
        prefix="held-out-",
        titled=f", of held-out photographs degraded with {len(SEEDS)} seeds each",
        seeds=len(SEEDS),
    )


@dataclass(frozen=True)
class NetworkFigures:
    """What scores do not say of a network."""

    detail: Mapping[float, float]
    """By the noise score set by hand: mean power above half the Nyquist frequency, grey levels squared."""
    spearman: Mapping[str, float]
    """By axis: rank correlation of estimated and true levels on degraded crops."""

    def tables(self) -> Iterator[Table]:
        """Of both."""
        yield Table(
            name="control",
            title="Fine detail by the noise score set by hand",
            columns=(Column(name="noise score"), Column(name=DETAIL, unit="levels²")),
            rows=tuple(self.detail.items()),
            note="Mean over the photographs, each with its first seed; a higher score must remove detail.",
        )
        yield Table(
            name="estimator",
            title="Estimated against true levels of degradation",
            columns=(Column(name="axis"), Column(name="Spearman", better="higher")),
            rows=tuple(self.spearman.items()),
            note=f"Rank correlation over {CROPS} random crops, degraded as in training.",
        )


def measure_network(network: S3Diff, method: Method, images: ImageSet, folder: Path) -> NetworkFigures:
    """Turn the noise score by hand on every photograph, and ask the estimator for levels that are known.

    Args:
        network: in evaluation mode, on its device.
        method: that network.
        images: of `held_out_images`.
        folder: theirs.
    """
    from s3diff_training.train.estimator import degraded_crops, rank_correlation

    cases = images.cases[:: images.seeds]
    inputs = [Input(open_photograph(case.lr).pixels, case.name) for case in cases]
    detail: dict[float, float] = {}
    with counted(len(NOISE_SCORES) * len(inputs), "control") as tell:
        for noise in NOISE_SCORES:
            energies: list[float] = []
            for each in inputs:
                tell(len(detail) * len(inputs) + len(energies), f"noise score {noise}: {each.name}")
                (result,) = method([each], noise=noise)
                energies.append(high_frequency_energy(result.pixels))
            detail[noise] = float(np.mean(energies))
    shortest = SCALE * min(min(each.pixels.shape[:2]) for each in inputs)
    crops = degraded_crops(folder, CROPS, min(CROP, shortest))
    return NetworkFigures(detail, rank_correlation(network.estimator, crops))


def network_tables(
    network: S3Diff, method: Method, folder: Path, held_out: Measured, photographs: Measured | None
) -> list[Table]:
    """What scores do not say of a network, and the targets that it meets or misses.

    Args:
        network: in evaluation mode, on its device.
        method: that network, measured.
        folder: of the held-out photographs.
        held_out: on these.
        photographs: on others; those with truths have targets of their own.
    """
    figures = measure_network(network, method, held_out.images, folder)
    tables = [*figures.tables()]
    if "LPIPS" in held_out.scores.labels:
        pairs = photographs if photographs and photographs.images.has_truths else None
        compared = [
            Compared(each.row_of(method).means, each.rows[0].means) for each in (held_out, pairs) if each
        ]
        tables.append(target_table(targets(compared[0], compared[1] if pairs else None, figures)))
    return tables


def write_picture(held_out: Measured, method: Method, path: Path) -> None:
    """Write a sheet of held-out photographs: low resolution, bicubic, what the method made, truth.

    Raises:
        JobError: when the disk refuses.
    """
    from s3diff_training.data import contact_sheet, from_uint8

    rows = []
    for place in held_out.images.shown:
        case = held_out.images.cases[place]
        made = (row.shown[place] for row in (held_out.rows[0], held_out.row_of(method)))
        sources = (case.lr, *made, case.hr)
        rows.append([from_uint8(open_photograph(source).pixels) for source in sources if source is not None])
    contact_sheet(rows, ("low resolution", "bicubic", "ours", "high resolution"), path)


# --- the targets of a good model ------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """Mean scores by label, of a network and of bicubic interpolation on the same images."""

    ours: Mapping[str, float]
    bicubic: Mapping[str, float]

    @property
    def lpips_ratio(self) -> float:
        """Our LPIPS over bicubic's; lower is better."""
        return self.ours["LPIPS"] / self.bicubic["LPIPS"]


@dataclass(frozen=True)
class Target:
    """One requirement, and whether it is met."""

    name: str
    limit: float
    measured: float
    met: bool


def targets(held_out: Compared, pairs: Compared | None, figures: NetworkFigures) -> Iterator[Target]:
    """What a good model reaches, in the order of a card.

    Args:
        held_out: on held-out photographs, with LPIPS.
        pairs: on real pairs, where some were given.
        figures: of the network.
    """
    ours, steps = held_out.ours, [after / before for before, after in pairwise(figures.detail.values())]
    yield _at_least("held-out PSNR-Y, dB (limit: bicubic's)", ours["PSNR-Y"], held_out.bicubic["PSNR-Y"])
    yield _at_most("held-out LPIPS / bicubic's", held_out.lpips_ratio, 0.65)
    if pairs is not None:
        yield _at_most("real pairs: LPIPS / bicubic's", pairs.lpips_ratio, 0.75)
        yield _at_least("real pairs: PSNR-Y, dB", pairs.ours["PSNR-Y"], 26.0)
    for period, label in GRIDS.items():
        yield _at_most(f"grid of period {period}", ours[label], 1.5)
    yield Target("fine detail, next noise score / this one", 1.0, max(steps), max(steps) < 1)
    yield _at_least("Spearman, noise", figures.spearman["noise"], 0.8)
    yield _at_least("Spearman, blur", figures.spearman["blur"], 0.6)


def target_table(found: Iterable[Target]) -> Table:
    """The targets; one that is missed is shown and is no error."""
    return Table(
        name="targets",
        title="What a good model reaches",
        columns=(
            Column(name="target"),
            *(Column(name=name, digits=4) for name in ("limit", "measured")),
            Column(name="verdict"),
        ),
        rows=tuple((each.name, each.limit, each.measured, "met" if each.met else "MISSED") for each in found),
    )


def _at_least(name: str, measured: float, limit: float) -> Target:
    return Target(f"{name}, at least", limit, measured, measured >= limit)


def _at_most(name: str, measured: float, limit: float) -> Target:
    return Target(f"{name}, at most", limit, measured, measured <= limit)
