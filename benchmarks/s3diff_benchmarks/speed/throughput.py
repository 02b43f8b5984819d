"""All of `bench throughput`: a folder, callers that wait, and arrivals that do not."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from s3diff_benchmarks.methods import require_pictures
from s3diff_benchmarks.pictures.pixels import given_or_drawn, square_of
from s3diff_benchmarks.report.findings import BundleRequest, Findings
from s3diff_benchmarks.report.layouts import plot, table
from s3diff_benchmarks.report.model import Cell
from s3diff_benchmarks.speed.load import Call, Load, closed_loop, knee, open_loop, whole_batch
from s3diff_benchmarks.speed.meters import energy, gpu_meter
from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.jobs import plan_jobs
from s3diff_runtime.batch.run import Batch, BatchOptions
from s3diff_runtime.engines.cpu_options import CpuOptions
from s3diff_runtime.engines.devices import listed_devices
from s3diff_runtime.engines.flavours import ENGINE_HELP
from s3diff_runtime.options import group, option
from s3diff_runtime.pictures.formats import save
from s3diff_runtime.progress import Counted, counted
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.vocabulary import Pixels

RATES = (0.5, 0.7, 0.8, 0.9, 1.0, 1.2)
"""Of arrivals, as shares of what callers that wait were served at best."""
_FOLDER_SHARE, _CLOSED_SHARE = 0.2, 0.4
_PATIENCE = 3.0
"""Times the median of a single caller, within which 95 % of the arrivals must be served."""
_MOST_IMAGES = 2000
_WAITS = ("median", "low", "high", "p95", "p99")


@dataclass(frozen=True)
class ThroughputRequest(BundleRequest):
    """What is loaded, and how."""

    engine: str = option("auto", ENGINE_HELP)
    device: str = option("cpu", "cpu, cuda, cuda:N, several with commas, or all for every GPU.")
    size: int = option(128, "Side of the square inputs.", least=8, most=4096)
    callers: tuple[int, ...] = option(
        (1, 2, 4, 8, 16, 32, 64), "Concurrent callers, with commas.", least=1, most=256
    )
    batch: int = option(4, "Of the folder's images.", least=1)
    image: Path | None = option(None, "Photograph to upscale, cut to size; drawn by default.")
    cpu: CpuOptions = group(CpuOptions)
    seconds: float = option(120.0, "For everything, about.", least=1)


def run_throughput(request: ThroughputRequest) -> Findings:
    """Images per second of BUNDLE: from a folder, with callers that wait, and with arrivals that do not.

    Callers of the first device each ask for one image after another (closed loop). Then images arrive at
    fixed rates, whether or not the earlier ones are done (open loop): waiting times count from the
    arrival, and the knee is the highest rate that is served in time.

    \b
      s3diff-export bench throughput s3diff.bundle -o throughput
      s3diff-export bench throughput s3diff.bundle --device all --seconds 300 -o throughput --html
    """
    devices = listed_devices(request.device)
    image = square_of(given_or_drawn(request.image), request.size)
    options = UpscaleOptions(**asdict(request.cpu), tile=0, batch=request.batch)
    with (
        TemporaryDirectory() as folder,
        Fleet.open(request.bundle, request.engine, devices, options) as fleet,
        counted(1.0, "throughput") as tell,
    ):
        fleet.check_size(request.size, request.size)
        tell(0.0, "warm-up")
        for upscaler in fleet.upscalers:
            require_pictures(request.bundle.name, upscaler.upscale_pixels([image]))
        tell(0.0, "folder")
        from_folder = _folder(fleet, image, Path(folder), request)
        closed, opened = _loads(lambda: fleet.upscalers[0].upscale_pixels([image]), request, tell)
    patience = _PATIENCE * closed[0].waits.median
    most, best = max(closed, key=lambda load: load.served), knee(opened, patience)
    summary = (
        from_folder,
        ("callers, at best", request.size, most.waits.count, most.served, most.served, None),
        ("arrivals, at the knee", request.size, None, best, best, None),
    )
    return Findings(
        tables=(
            table("throughput", summary),
            table("callers", ((load.callers, *_figures(load)) for load in closed)),
            table("arrivals", ((load.offered, *_figures(load), load.late, patience) for load in opened)),
        ),
        plots=(plot("callers"), plot("arrivals")),
        notes=(
            f"knee: the highest rate of which all were served, and 95 % of them within {patience:.3g} s, "
            f"{_PATIENCE:.0f} times the median with the fewest callers",
            "callers and arrivals use one device, and ask for one image a call",
            *_device_notes(devices, measured=from_folder[-1] is not None),
        ),
    )


def _folder(fleet: Fleet, image: Pixels, folder: Path, request: ThroughputRequest) -> tuple[Cell, ...]:
    """The row of as many images as fit the time, after a small folder that tells how many these are."""
    least = request.batch * len(fleet.upscalers)
    seconds = _timed_folder(fleet, image, folder / "first", least)
    fitting = int(request.seconds * _FOLDER_SHARE * least / seconds)
    images = min(max(fitting // least * least, least), _MOST_IMAGES)
    spent: list[float] = []
    with gpu_meter(fleet.upscalers[0].device) as meter, energy(meter.joules, spent):
        seconds = _timed_folder(fleet, image, folder / "second", images)
    devices, rate = len(fleet.upscalers), images / seconds
    joules = spent[0] / images if spent and devices == 1 else None
    return "folder", request.size, images, rate, rate / devices, joules


def _timed_folder(fleet: Fleet, image: Pixels, folder: Path, images: int) -> float:
    """Seconds from the first file read to the last one written."""
    for number in range(images):
        save(Image.fromarray(image), folder / "in" / f"{number:05}.png")
    return whole_batch(Batch(fleet, plan_jobs([str(folder / "in")], folder / "out"), BatchOptions()))


def _loads(call: Call, request: ThroughputRequest, tell: Counted) -> tuple[list[Load], list[Load]]:
    """Callers that wait, from few to many, then arrivals at shares of what these were served at best."""
    several = sorted({*request.callers})
    begun, share = _FOLDER_SHARE, _CLOSED_SHARE / len(several)
    closed, opened = [], []
    for number, callers in enumerate(several):
        tell(begun + number * share, f"{callers} callers")
        closed.append(closed_loop(call, callers, request.seconds * share))
    best = max(load.served for load in closed)
    begun += _CLOSED_SHARE
    share = (1 - begun) / len(RATES)
    for number, part in enumerate(RATES):
        tell(begun + number * share, f"{best * part:.3g} arrivals per second")
        opened.append(open_loop(call, best * part, several[-1], request.seconds * share))
    tell(1.0, "measured")
    return closed, opened


def _figures(load: Load) -> tuple[Cell, ...]:
    return load.served, *(getattr(load.waits, each) for each in _WAITS), load.waits.count


def _device_notes(devices: Sequence[str], measured: bool) -> Iterator[str]:
    if len(devices) > 1:
        yield f"the folder was shared among {', '.join(devices)}; callers and arrivals used {devices[0]}"
    if not measured:
        yield "energy was not measured: NVML counts it, for one GPU at a time"
