"""The pipeline of a batch: overlap, order, bounds, and what one failure costs."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image
from tests.runtime.pictures import PICTURE, enlarged

from s3diff_runtime.batch import run as batch_module
from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.batch.jobs import Job, plan_jobs
from s3diff_runtime.batch.run import Batch, BatchOptions, Outcome
from s3diff_runtime.batch.sizing import ResultSize, Sizing, is_whole
from s3diff_runtime.errors import BundleError, JobError
from s3diff_runtime.upscale_options import UpscaleOptions
from s3diff_runtime.upscaler import Result, Upscaler

TIMES_FOUR = Sizing(ResultSize(), 4, (4,))


class Enlarger:
    """Stands in for an upscaler: repeats pixels, remembers its calls, and fails where it is told to."""

    def __init__(self, batch: int = 1, seconds: float = 0.0, failing: Sequence[int] = ()) -> None:
        self.manifest = SimpleNamespace(scale=4, scales=(4,))
        self.options = UpscaleOptions(batch=batch)
        self.calls: list[list[tuple[int, int]]] = []
        self.before_call: Callable[[], object] = lambda: None
        self._seconds, self._failing = seconds, set(failing)

    def check_size(self, height: int, width: int, scale: int | None = None) -> None:
        """Takes every size."""

    def upscale_pixels(
        self, images: Sequence[np.ndarray], each: object = None, **settings: object
    ) -> list[Result]:
        """Enlarge; a picture whose width is one of the failing ones fails its whole list."""
        self.before_call()
        self.calls.append([(image.shape[1], image.shape[0]) for image in images])
        time.sleep(self._seconds * len(images))
        if any(image.shape[1] in self._failing for image in images):
            raise JobError("stage unet failed")
        return [
            Result(
                pixels=enlarged(image),
                estimated={"noise": 0.25, "blur": 0.5},
                applied={"noise": 0.25, "blur": 0.5},
                bin=None,
                engine="fake",
                device="cpu",
                precision="fp32",
                seconds={"unet": self._seconds},
                tiles=1,
            )
            for image in images
        ]


def run(upscaler: Enlarger, jobs: Sequence[Job], resume: bool = False) -> list[Outcome]:
    batch = Batch(Fleet([cast(Upscaler, upscaler)]), jobs, BatchOptions(resume=resume))
    batch.run()
    return batch.outcomes


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Twelve pictures of widths 20 to 31, number 3 of them damaged."""
    (tmp_path / "in").mkdir()
    for number in range(12):
        Image.fromarray(PICTURE[:, : 20 + number].copy()).save(tmp_path / "in" / f"{number:02}.png")
    (tmp_path / "in" / "03.png").write_bytes(b"not a picture")
    return plan_jobs([str(tmp_path / "in")], tmp_path / "out")


def target(job: Job) -> Path:
    """The result of a job whose files are on this machine."""
    assert isinstance(job.target, Path)
    return job.target


def statuses(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


def test_results_are_written_and_outcomes_keep_the_order(jobs: list[Job]) -> None:
    settled: list[Outcome] = []
    batch = Batch(Fleet([cast(Upscaler, Enlarger(batch=2))]), jobs, BatchOptions(), settled.append)
    batch.run()
    assert [outcome.job for outcome in batch.outcomes] == jobs
    assert statuses(batch.outcomes) == ["done"] * 3 + ["failed"] + ["done"] * 8
    assert sorted(settled, key=lambda outcome: str(outcome.job.source)) == batch.outcomes
    assert "03.png is not a PNG" in (batch.outcomes[3].error or "")
    for number, outcome in enumerate(batch.outcomes):
        if number != 3:
            assert outcome.input_size == (20 + number, 40)
            assert outcome.output_size == (4 * (20 + number), 160)
            assert set(outcome.seconds) == {"read", "unet", "write"}
            with Image.open(target(outcome.job)) as image:
                assert np.array_equal(np.asarray(image), enlarged(PICTURE[:, : 20 + number]))
    assert not target(jobs[3]).exists()


def test_reading_and_writing_overlap_the_network(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    pause = 0.1
    for name in ("open_photograph", "save"):
        work = getattr(batch_module, name)
        monkeypatch.setattr(batch_module, name, _slowed(work, pause))
    start = time.perf_counter()
    run(Enlarger(seconds=pause), jobs)
    elapsed = time.perf_counter() - start
    assert elapsed < 0.7 * 3 * 11 * pause, "one after the other takes three pauses a picture"


def _slowed(work: Callable[..., object], seconds: float) -> Callable[..., object]:
    def slowly(*given: object) -> object:
        time.sleep(seconds)
        return work(*given)

    return slowly


def test_failing_picture_takes_none_of_its_batch_along(jobs: list[Job]) -> None:
    upscaler = Enlarger(batch=4, failing=[21, 27])
    outcomes = run(upscaler, jobs)
    assert [n for n, status in enumerate(statuses(outcomes)) if status == "failed"] == [1, 3, 7]
    assert outcomes[7].error == "stage unet failed"
    assert len(upscaler.calls[0]) == 4


def test_broken_bundle_ends_the_batch(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_LARGEST_CHUNK", 1)
    upscaler = Enlarger()

    def break_third() -> None:
        if len(upscaler.calls) == 2:
            raise BundleError("a graph does not load")

    upscaler.before_call = break_third
    batch = Batch(Fleet([cast(Upscaler, upscaler)]), jobs, BatchOptions())
    with pytest.raises(BundleError):
        batch.run()
    assert statuses(batch.outcomes)[:2] == ["done", "done"], "what was computed is written all the same"
    assert statuses(batch.outcomes)[4:] == ["not done"] * 8


def test_quick_pictures_share_longer_calls(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_CHUNK_SECONDS", 0.35)
    for seconds, lengths in ((0.0, [2, 9]), (0.3, [2, 2, 2, 2, 2, 1])):
        upscaler = Enlarger(batch=2, seconds=seconds)
        run(upscaler, jobs)
        assert [len(call) for call in upscaler.calls] == lengths


def test_large_pictures_do_not_wait_for_each_other(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_CHUNK_PIXELS", 40 * 45)
    upscaler = Enlarger(batch=4)
    run(upscaler, jobs)
    assert [len(call) for call in upscaler.calls] == [2] + [1] * 9


def test_results_that_wait_for_the_disk_are_bounded(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_LARGEST_CHUNK", 1)
    monkeypatch.setattr(batch_module, "_WAITING_PIXELS", 3 * 16 * 40 * 31)
    waiting, most, lock = 0, 0, threading.Lock()
    save, upscaler = batch_module.save, Enlarger()
    unbounded_call = upscaler.upscale_pixels

    def counted(images: Sequence[np.ndarray], each: object, **settings: object) -> list[Result]:
        nonlocal waiting, most
        with lock:
            waiting += len(images)
            most = max(most, waiting)
        return unbounded_call(images, each, **settings)

    def slow_save(*given: object) -> tuple[str, ...]:
        nonlocal waiting
        time.sleep(0.03)
        notes = save(*given)  # type: ignore[arg-type]
        with lock:
            waiting -= 1
        return notes

    monkeypatch.setattr(upscaler, "upscale_pixels", counted)
    monkeypatch.setattr(batch_module, "save", slow_save)
    assert statuses(run(upscaler, jobs)).count("done") == 11
    assert 2 <= most <= 4


def test_no_writer_can_be_lost_to_an_interruption(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thread whose start is interrupted, its pool knows nothing, and nobody waits for what it writes."""
    upscaler, start = Enlarger(batch=4), threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.startswith("write") and upscaler.calls:
            raise KeyboardInterrupt

    def slow_save(*_: object) -> tuple[str, ...]:
        time.sleep(0.05)
        return ()

    monkeypatch.setattr(threading.Thread, "start", interrupted_start)
    monkeypatch.setattr(batch_module, "save", slow_save)
    assert [outcome.status for outcome in run(upscaler, jobs)].count("done") == 11


def test_full_disk_ends_the_batch_and_loses_nothing(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save
    saved: list[Path] = []

    def filling(image: Image.Image, path: Path, **options: object) -> None:
        if len(saved) >= 4:
            path.write_bytes(b"the beginning of")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(path)
        save(image, path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", filling)
    upscaler = Enlarger(seconds=0.02)
    batch = Batch(Fleet([cast(Upscaler, upscaler)]), jobs, BatchOptions())
    with pytest.raises(JobError, match=r"No space left on device.*stopped, and --resume goes on from here"):
        batch.run()
    done = [outcome for outcome in batch.outcomes if outcome.status == "done"]
    assert len(done) == 4
    assert len(upscaler.calls) < 11, "the network does not work for nothing"
    monkeypatch.undo()
    assert sorted(path.name for path in target(jobs[0]).parent.iterdir()) == [o.job.target.name for o in done]
    assert statuses(run(Enlarger(), jobs, resume=True)).count("skipped") == 4


def test_bug_in_a_writer_is_not_swallowed(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    def buggy(*given: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(batch_module, "save", buggy)
    with pytest.raises(ZeroDivisionError):
        run(Enlarger(), jobs)


@pytest.mark.parametrize("damage", ["truncated", "other size", "missing", "not a picture"])
def test_resume_redoes_what_is_not_whole(jobs: list[Job], damage: str) -> None:
    run(Enlarger(), jobs)
    result = target(jobs[5])
    content = result.read_bytes()
    if damage == "other size":
        Image.fromarray(PICTURE).save(result)
    elif damage == "missing":
        result.unlink()
    else:
        result.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"text")
    upscaler = Enlarger()
    outcomes = run(upscaler, jobs, resume=True)
    assert statuses(outcomes) == ["skipped"] * 3 + ["failed"] + ["skipped", "done"] + ["skipped"] * 6
    assert upscaler.calls == [[(25, 40)]]
    assert result.read_bytes() == content


def test_comparison_is_part_of_what_is_whole(jobs: list[Job]) -> None:
    run(Enlarger(), jobs[:1])
    compared = Job(jobs[0].source, jobs[0].target, target(jobs[0]).with_suffix(".compare.png"))
    assert is_whole(jobs[0], TIMES_FOUR, 10_000)
    assert not is_whole(compared, TIMES_FOUR, 10_000)
    run(Enlarger(), [compared], resume=True)
    assert is_whole(compared, TIMES_FOUR, 10_000)
    with Image.open(target(jobs[0]).with_suffix(".compare.png")) as sheet:
        halves = np.asarray(sheet)[-160:, :80], np.asarray(sheet)[-160:, -80:]
    assert np.array_equal(halves[1], enlarged(PICTURE[:, :20]))
    bicubic = Image.fromarray(PICTURE[:, :20].copy()).resize((80, 160), Image.Resampling.BICUBIC)
    assert np.array_equal(halves[0], np.asarray(bicubic))


def test_format_that_cannot_hold_the_result_fails_before_the_network(tmp_path: Path) -> None:
    Image.new("RGB", (4096, 2)).save(tmp_path / "wide.webp")
    upscaler = Enlarger()
    outcomes = run(upscaler, plan_jobs([str(tmp_path / "wide.webp")], tmp_path / "out"))
    assert outcomes[0].error is not None
    assert "WEBP cannot hold 16384x8 pixels; choose png" in outcomes[0].error
    assert not upscaler.calls
