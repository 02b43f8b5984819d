"""All of `bench ray`: `upscale --ray` beside `upscale`, on this machine, in the same rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from s3diff_benchmarks.report.findings import BundleRequest, Findings
from s3diff_benchmarks.report.layouts import table
from s3diff_benchmarks.speed.load import whole_batch
from s3diff_benchmarks.statistics import Summary
from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.jobs import Job, plan_jobs
from s3diff_runtime.batch.run import Batch, BatchOptions
from s3diff_runtime.options import option
from s3diff_runtime.progress import counted
from s3diff_runtime.serving.ray_batch import SharedBatch, Workers
from s3diff_runtime.serving.ray_options import RayOptions
from s3diff_runtime.upscale_options import UpscaleOptions

_WARM_UP = 8
"""Pictures of each side before the first round."""


@dataclass(frozen=True)
class RayBenchRequest(BundleRequest):
    """What is shared out."""

    pictures: int = option(200, "Of a round.", least=_WARM_UP)
    size: int = option(32, "Side of the square inputs.", least=8, most=1024)
    rounds: int = option(3, "Of both sides, one after the other.", least=1)
    engine: str = option("auto", "Of both sides.")
    workers: int | None = option(None, "Of Ray.", least=1, shown="as upscale --ray chooses")
    threads: int | None = option(None, "Of the CPU, for one engine.", least=1, shown="as each side chooses")


def run_ray_bench(request: RayBenchRequest) -> Findings:
    """Measure `upscale --ray` beside `upscale` on this machine, from files to files, start-up apart.

    Both have opened the bundle, and have done a few pictures, before the first round; then they take turns.
    """
    upscale = UpscaleOptions(threads=request.threads) if request.threads else UpscaleOptions()
    ray = RayOptions(True, "local", request.workers)
    with TemporaryDirectory() as folder, counted(2.0 * request.rounds, "ray") as tell:
        inputs = _draw(Path(folder), request)
        tell(0.0, "opening")
        with (
            Fleet.open(request.bundle, request.engine, [request.device], upscale) as fleet,
            Workers(request.bundle, request.engine, request.device, upscale, ray) as workers,
        ):
            jobs = plan_jobs([str(inputs)], Path(folder) / "out")
            sides: dict[str, Fleet | Workers] = {"upscale": fleet, "upscale --ray": workers}
            rates = {name: list[float]() for name in sides}
            for side in sides.values():
                _rate(side, jobs[: _WARM_UP * workers.resources.workers])
            for number in range(request.rounds):
                for place, (name, side) in enumerate(sides.items()):
                    tell(2.0 * number + place, name)
                    rates[name].append(_rate(side, jobs[: request.pictures]))
            rows = []
            for name, side in sides.items():
                summary = Summary.of(rates[name])
                ratio = summary.median / Summary.of(rates["upscale"]).median
                found = (min(rates[name]), summary.median, max(rates[name]))
                rows.append((name, side.engine, side.precision, side.device, len(rates[name]), *found, ratio))
    return Findings(tables=(table("ray", rows),))


def _rate(side: Fleet | Workers, jobs: Sequence[Job]) -> float:
    """Pictures a second."""
    options = BatchOptions()
    batch = Batch(side, jobs, options) if isinstance(side, Fleet) else SharedBatch(side, jobs, options)
    return len(jobs) / whole_batch(batch)


def _draw(folder: Path, request: RayBenchRequest) -> Path:
    """Pictures of smooth noise: as different as photographs, and as small as files."""
    inputs = folder / "in"
    inputs.mkdir()
    numbers = np.random.default_rng(0)
    for number in range(request.pictures):
        coarse = numbers.integers(0, 256, (request.size // 4 + 1, request.size // 4 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((request.size, request.size), Image.Resampling.BICUBIC)
        image.save(inputs / f"{number:04}.png")
    return inputs
