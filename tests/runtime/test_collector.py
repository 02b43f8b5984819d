"""The collector: what waits together runs together, and what nobody waits for is not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from tests.runtime.fake_bundle import dark_noise, enlarged, expected_shift, write_fake_bundle

from s3diff_runtime import JobError, UpscaleOptions, Upscaler
from s3diff_runtime.batch.fleet import Fleet
from s3diff_runtime.engines.interface import LANES
from s3diff_runtime.serving.collector import AbandonedJob, Collector, Job
from s3diff_runtime.settings import PictureSettings

SET = PictureSettings(noise=0.25, blur=0.5, color_fix="none")
CUT = np.full((40, 40, 3), 60, np.uint8)
"""Larger than a tile, so that it runs alone and tells of every batch of tiles."""


class Busy:
    """A collector whose threads are all held by pictures that wait in the middle of their work."""

    def __init__(self, upscaler: Upscaler) -> None:
        self.batches: list[int] = []
        self.collector = Collector(Fleet([upscaler]), self.batches.append)
        self._go_on, begun = Event(), [Event() for _ in range(LANES)]

        def hold(event: Event) -> None:
            event.set()
            self._go_on.wait(30)

        self.held = [
            self.collector.submit(CUT, SET, lambda done, total, event=event: hold(event))  # type: ignore[misc]
            for event in begun
        ]
        for event in begun:
            assert event.wait(30)

    def release(self, *jobs: Job) -> None:
        """Let them go on, and wait for these."""
        self._go_on.set()
        for job in (*self.held, *jobs):
            job.result.exception(30)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return {mode: write_fake_bundle(folder / mode, mode) for mode in ("dynamic", "fused")}


@pytest.fixture
def busy(bundles: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Busy]:
    mode = getattr(request, "param", "dynamic")
    with Upscaler.open(bundles[mode], options=UpscaleOptions(tile=20, batch=4)) as upscaler:
        found = Busy(upscaler)
        yield found
        found.release()
        found.collector.close()


def test_what_waits_and_fits_shares_a_batch(busy: Busy) -> None:
    small = [dark_noise(12, 8, seed) for seed in range(5)]
    jobs = [busy.collector.submit(pixels, SET) for pixels in small]
    other_size = busy.collector.submit(dark_noise(8, 12), SET)
    other_scores = busy.collector.submit(small[0], PictureSettings(noise=0.5, blur=0.5, color_fix="none"))
    busy.release(*jobs, other_size, other_scores)
    assert sorted(busy.batches) == sorted([1] * LANES + [4, 2, 1])
    for pixels, job in zip(small, jobs, strict=True):
        expected = enlarged(pixels, expected_shift(0.25, 0.5))
        assert np.abs(job.result.result().pixels.astype(int) - expected).max() <= 1
        assert job.seconds_queued > 0
    assert other_scores.result.result().applied["noise"] == 0.5


@pytest.mark.parametrize("busy", ["fused"], indirect=True)
def test_where_every_picture_needs_weights_of_its_own_none_waits_for_another(busy: Busy) -> None:
    estimated = [busy.collector.submit(dark_noise(12, 8, seed), PictureSettings()) for seed in range(2)]
    by_hand = [busy.collector.submit(dark_noise(12, 8, seed), SET) for seed in range(2)]
    busy.release(*estimated, *by_hand)
    assert sorted(busy.batches) == sorted([1] * LANES + [1, 1, 2])


def test_what_is_abandoned_while_it_waits_is_never_begun(busy: Busy) -> None:
    gone, stays = (busy.collector.submit(dark_noise(12, 8), SET) for _ in range(2))
    busy.collector.abandon(gone)
    assert isinstance(gone.result.exception(0), AbandonedJob)
    busy.release(stays)
    assert gone.taken is None
    assert stays.result.exception() is None
    assert sum(busy.batches) == LANES + 1


def test_what_is_abandoned_in_its_middle_ends_after_its_tiles(busy: Busy) -> None:
    busy.collector.abandon(busy.held[0])
    busy.release()
    assert isinstance(busy.held[0].result.exception(), AbandonedJob)
    assert busy.held[1].result.exception() is None


def test_a_picture_that_fails_takes_no_other_with_it(busy: Busy, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = dark_noise(12, 8, 1), dark_noise(12, 8, 2)
    upscale = Upscaler.upscale_pixels

    def failing(self: Upscaler, images: list[np.ndarray], *rest: object, **settings: object) -> object:
        if any(image is bad for image in images):
            raise JobError("the network gave no picture")
        return upscale(self, images, *rest, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Upscaler, "upscale_pixels", failing)
    jobs = [busy.collector.submit(pixels, SET) for pixels in (good, bad, good)]
    busy.release(*jobs)
    assert [type(job.result.exception()) for job in jobs] == [type(None), JobError, type(None)]


def test_closing_finishes_what_waits(bundles: dict[str, Path]) -> None:
    with Upscaler.open(bundles["dynamic"]) as upscaler:
        collector = Collector(Fleet([upscaler]), lambda size: None)
        jobs = [collector.submit(dark_noise(12, 8), SET) for _ in range(9)]
        collector.close()
        assert all(job.result.done() for job in jobs)
