"""The work behind `s3diff-export upscale`: checks the request, runs the batch, shows progress, reports."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any, get_args

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from s3diff_runtime.batch.each import read_each, require_able
from s3diff_runtime.batch.fleet import Fleet, FleetOptions
from s3diff_runtime.batch.jobs import Jobs, exists, output_folder, plan_jobs, refuse_existing, resolved
from s3diff_runtime.batch.listing import ListedJobs, folder_to_list, looked_up, refuse_filled
from s3diff_runtime.batch.run import Batch, BatchOptions, Outcome, Status
from s3diff_runtime.batch.search import LeftOut
from s3diff_runtime.batch.sizing import ResultSize, Sizing, is_whole, size_of_result
from s3diff_runtime.bundle.fetching import local_bundle
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import JobError, RequestError, S3DiffError, one_line
from s3diff_runtime.files import write_text
from s3diff_runtime.options import Options, argument, group, option
from s3diff_runtime.pictures.formats import QUALITY, SUFFIXES, Format
from s3diff_runtime.pictures.photograph import MAX_PIXELS
from s3diff_runtime.pictures.reading import every_size_allowed
from s3diff_runtime.remote import Place, RemotePath, place_named
from s3diff_runtime.serving.ray_options import RayOptions
from s3diff_runtime.settings import PictureSettings, UpscaleSettings

if TYPE_CHECKING:
    from s3diff_runtime.serving.ray_batch import SharedBatch, Workers

_REMOTE_THREADS = 8
"""That read, and that write, where pictures are in a store."""


@dataclass(frozen=True)
class UpscaleRequest(Options):
    """Everything that `s3diff-export upscale` can be asked for."""

    inputs: tuple[str, ...] = argument(
        "Files, folders and glob patterns, of this machine or as URLs.", metavar="INPUT..."
    )
    output: Place = option(
        help="Folder for the results; a file for one INPUT. Or its URL, such as s3://bucket/folder.",
        flags=("-o", "--output"),
        parse=place_named,
        metavar="PATH",
    )
    bundle: str | Path | None = option(
        None,
        "Made by s3diff-export build: a folder, OWNER/NAME[@REVISION] on the Hub, or a URL.",
        env="S3DIFF_BUNDLE",
        metavar="BUNDLE",
    )
    format: Format | None = option(None, "Of the results; as the input by default.")
    quality: int = option(QUALITY, "Of JPEG and WebP.", least=1, most=100)
    settings: PictureSettings = group(PictureSettings)
    result_size: ResultSize = group(ResultSize)
    each: Path | None = option(
        None, "CSV of settings for single pictures: a column input, and one for each setting."
    )
    run: FleetOptions = group(FleetOptions)
    cluster: RayOptions = group(RayOptions)
    max_pixels: int = option(MAX_PIXELS, "Larger inputs are refused.", least=1)
    force: bool = option(False, "Replace results that exist.")
    resume: bool = option(False, "Keep results that exist and are whole; do the others.")
    compare: bool = option(False, "Also write NAME.compare.png, before and after side by side.")
    dry_run: bool = option(False, "Only list what would be done.")
    report: Place | None = option(None, "Write a summary as JSON.", parse=place_named, metavar="PATH")

    def problems(self) -> Iterator[str]:
        """What is missing, and what contradicts each other."""
        if self.bundle is None:
            yield "no bundle: pass --bundle BUNDLE, or set S3DIFF_BUNDLE; s3diff-export build makes one"
        if self.cluster.ray and (device := self.run.device) not in ("cpu", "cuda"):
            yield f"--device {device} with --ray, which gives each worker its GPU; expected cpu or cuda"
        if self.settings.scale is not None and self.result_size.given:
            yield f"--scale with {' and '.join(self.result_size.flags_of())}; a result has one size"
        if self.force and self.resume:
            yield "--force replaces results and --resume keeps them; choose one"
        if self.dry_run and self.report:
            yield "--dry-run writes nothing, not even a --report"


def run_upscale(request: UpscaleRequest) -> None:
    """Upscale every INPUT (×4, or by --scale): files, folders (at any depth) and glob patterns of pictures.

    \b
      s3diff-export upscale holiday/ portrait.jpg -o upscaled/ --bundle s3diff.bundle
      s3diff-export upscale s3://bucket/in -o s3://bucket/out --bundle s3diff.bundle --report report.json

    One bad image is reported and skipped, and the exit code is then 1. Ctrl-C leaves only whole results;
    --resume goes on from there.

    Raises:
        RequestError: before any work, for a request that cannot be met.
        BundleError: for a damaged bundle.
        JobError: after the work, when pictures failed; during it, when the disk is full.
    """
    jobs = _planned(request)
    if request.report:
        _require_own_file(request.report, jobs)
    each = read_each(request.each, jobs) if request.each else {}
    bundle = request.bundle or ""  # never None: the request checked it
    with every_size_allowed():
        if request.dry_run:
            manifest = Manifest.read(local_bundle(bundle))
            require_able(manifest, request.settings, each)
            _show_plan(request, jobs, Sizing.asked(request.result_size, request.settings.scale, manifest))
            return
        with _opened(request, bundle) as fleet:
            require_able(fleet.manifest, request.settings, each)
            if request.report:
                _require_writable(request.report.parent)
            _require_writable(output_folder(request.output))
            _run(request, fleet, jobs, each)


def _opened(request: UpscaleRequest, bundle: str | Path) -> Fleet | Workers:
    """What does the work: the devices of this machine, or workers of a cluster."""
    if not request.cluster.ray:
        return request.run.fleet(bundle)
    from s3diff_runtime.serving.ray_batch import Workers  # imports Ray

    return Workers(bundle, request.run.engine, request.run.device, request.run.options, request.cluster)


def _planned(request: UpscaleRequest) -> Jobs | ListedJobs:
    """The jobs, after what exists already was refused where that was not allowed."""
    folder = None if request.each else folder_to_list(request.inputs)  # rows of --each name pictures of all
    replaces = request.force or request.resume
    if folder is not None:
        if not replaces:
            refuse_filled(request.output)
        return ListedJobs(folder, request.output, request.format, request.compare, request.resume)
    jobs = plan_jobs(request.inputs, request.output, request.format, request.compare)
    if request.resume:
        jobs = Jobs(looked_up(jobs), jobs.left_out)
    elif not replaces and isinstance(request.output, RemotePath) and len(jobs) > 1:
        refuse_filled(output_folder(request.output))  # one request in the place of one for each result
    elif not replaces:
        refuse_existing(jobs)
    return jobs


def _run(
    request: UpscaleRequest,
    fleet: Fleet | Workers,
    jobs: Jobs | ListedJobs,
    each: Mapping[Place, UpscaleSettings],
) -> None:
    options = BatchOptions(
        request.settings,
        request.result_size,
        each,
        request.quality,
        request.resume,
        request.max_pixels,
        threads=_REMOTE_THREADS if _is_remote(request) else BatchOptions.threads,
    )
    started, start = datetime.now(UTC), perf_counter()
    ending: BaseException | None = None
    with _progress(len(jobs) if isinstance(jobs, Jobs) else None) as show:
        batch: Batch | SharedBatch
        if isinstance(fleet, Fleet):
            batch = Batch(fleet, jobs, options, show)
        else:
            batch = fleet.batch(jobs, options, show)
        try:
            batch.run()
        except BaseException as error:  # an interruption too: the report says how far the batch came
            ending = error
    seconds = perf_counter() - start
    _print_summary(fleet, batch.outcomes, seconds, ending)
    _print_left_out(jobs.left_out)
    if request.report:
        report = _report(request, fleet, batch.outcomes, started, seconds, ending)
        report["left_out"] = [each.as_json() for each in jobs.left_out]
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        # What is not UTF-8 in a file's name becomes \udcXX, as JSON escapes it and Python reads it back.
        text = text.encode("utf-8", "backslashreplace").decode()
        if isinstance(request.report, RemotePath):
            request.report.write(text.encode())
        else:
            write_text(request.report, text)
    if ending is not None:
        raise ending
    failed = [outcome for outcome in batch.outcomes if outcome.status == "failed"]
    if failed:
        raise JobError(f"{len(failed)} of {len(batch.outcomes)} images failed; the first: {failed[0].error}")


def _is_remote(request: UpscaleRequest) -> bool:
    places = (*map(place_named, request.inputs), request.output)
    return any(isinstance(place, RemotePath) for place in places)


def _show_plan(request: UpscaleRequest, jobs: Jobs | ListedJobs, sizing: Sizing) -> None:
    failed = total = 0
    for total, job in enumerate(jobs, start=1):  # noqa: B007 - told below
        try:
            if job.problem:
                raise RequestError(job.problem)
            (width, height), sized = size_of_result(job, sizing, request.max_pixels)
            kept = request.resume and is_whole(job, sizing, request.max_pixels)
        except S3DiffError as error:
            failed += 1
            click.echo(f"failing: {error}")
            continue
        what = "is whole" if kept else "replaced" if exists(job.target) else "new"
        sizes = f"{width}x{height} -> {sized.width}x{sized.height}"
        click.echo(f"{job.source} -> {job.target} ({sizes}, {what})")
    _print_left_out(jobs.left_out)
    if failed:
        raise JobError(f"{failed} of {total} images would fail")


class _Speed(ProgressColumn):
    """Images per second over the last while."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f} images/s" if speed else "", style="progress.data.speed")


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[Outcome], None]]:
    """Show a bar on a terminal, and failures anywhere; yields what to call with each outcome.

    Args:
        total: None where nobody knows it yet.
    """
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), _Speed(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        lock, remaining = Lock(), total

        def show(outcome: Outcome) -> None:
            nonlocal remaining
            if outcome.status == "failed":
                console.print(
                    f"failed: {one_line(outcome.error or '')}", markup=False, highlight=False, soft_wrap=True
                )
            # What is skipped takes no time, and would make the others look quick.
            if outcome.status == "skipped" and remaining is not None:
                with lock:
                    remaining -= 1
                    progress.update(task, total=remaining)
            else:
                progress.advance(task)

        yield show


def _print_summary(
    fleet: Fleet | Workers, outcomes: Sequence[Outcome], seconds: float, ending: BaseException | None
) -> None:
    counts = _counts(outcomes)
    parts = [f"{counts['done']} upscaled in {seconds:.1f} s on {fleet.engine} in {fleet.precision}"]
    if len(outcomes) == 1 and counts["done"]:
        for path in outcomes[0].job.outputs:
            click.echo(path)
        click.echo(parts[0], err=True)  # standard output has the paths alone
        return
    parts += [f"{counts[status]} {status}" for status in ("skipped", "failed", "not done") if counts[status]]
    hint = "; --resume goes on from here" if isinstance(ending, KeyboardInterrupt) else ""
    click.echo(", ".join(parts) + hint, err=ending is not None)


def _print_left_out(left_out: Sequence[LeftOut]) -> None:
    """One line on what the folders hold besides, by reason."""
    reasons: dict[str, list[str]] = {}
    for each in left_out:
        reasons.setdefault(each.reason, []).append(f"{each.count} {each.kind}")
    if reasons:
        click.echo("left out: " + "; ".join(f"{', '.join(kinds)} ({why})" for why, kinds in reasons.items()))


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    found = Counter(outcome.status for outcome in outcomes)
    return {status: found[status] for status in get_args(Status)}


def _report(
    request: UpscaleRequest,
    fleet: Fleet | Workers,
    outcomes: Sequence[Outcome],
    started: datetime,
    seconds: float,
    ending: BaseException | None,
) -> dict[str, Any]:
    counts = _counts(outcomes)
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "images_per_second": round(counts["done"] / seconds, 4),
        "bundle": str(request.bundle),
        "engine": fleet.engine,
        "device": fleet.device,
        "precision": fleet.precision,
        "settings": asdict(request.settings) | asdict(request.result_size),
        "ended_by": None if ending is None else str(ending) or type(ending).__name__,
        "counts": counts,
        "images": [outcome.as_json() for outcome in outcomes],
    }


def _require_own_file(report: Place, jobs: Jobs | ListedJobs) -> None:
    taken: set[Place] = set()
    if isinstance(jobs, Jobs):
        taken = {resolved(path) for job in jobs for path in (job.source, *job.outputs)}
    is_picture = isinstance(jobs, ListedJobs) and report.suffix.lower() in SUFFIXES  # none is known yet
    if is_picture or resolved(report) in taken or (isinstance(report, Path) and report.is_dir()):
        raise RequestError(f"--report {report} is an input, a result or a folder; name another file")


def _require_writable(folder: Place) -> None:
    """Find out before hours of work; permissions alone do not tell, for example on a read-only disk."""
    if isinstance(folder, RemotePath):
        folder.require_writable()
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RequestError(f"cannot write into {folder}: {error.strerror or error}") from error
