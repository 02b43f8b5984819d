"""Sequences of shapes, batches, threads and failures on a fake GPU: results or clear errors, and no leaks."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.fake_bundle import dark_noise, enlarged, expected_shift, write_fake_bundle
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_engines import add_engines
from tests.runtime.fake_tensorrt import install_fakes

from s3diff_runtime import JobError, UpscaleOptions, Upscaler

OPTIONS = UpscaleOptions(tile=16, overlap=4, batch=3, threads=1)
ASKED: dict[str, Any] = {"noise": 0.5, "blur": 0.25, "color_fix": "none"}
"""Given by hand, and without a correction that depends on the tile: so results do not depend on the tiles."""
SIDES = st.tuples(st.sampled_from([1, 4, 7, 16, 30]), st.sampled_from([3, 8, 16]))
LISTS = st.lists(st.lists(SIDES, min_size=1, max_size=5), min_size=1, max_size=6)
FAILING = [
    "cudaMalloc",
    "cudaMallocHost",
    "cudaMemcpyAsync",
    "cudaStreamCreateWithFlags",
    "cudaStreamSynchronize",
    "cudaEventCreate",
    "cudaEventRecord",
    "cudaEventElapsedTime",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
]
HARMLESS = {"cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"}
"""A graph only saves time."""
FAILURES = st.lists(st.tuples(st.sampled_from(FAILING), st.integers(1, 40)), max_size=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_fake_bundle(tmp_path_factory.mktemp("bundle"), "dynamic")
    add_engines(folder)
    return folder


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_fake_bundle(tmp_path_factory.mktemp("fused"), "fused")
    add_engines(folder)
    return folder


@cache
def picture(height: int, width: int) -> np.ndarray:
    return dark_noise(height, width, seed=height * 100 + width)


@cache
def expected(height: int, width: int) -> np.ndarray:
    return enlarged(picture(height, width), expected_shift(0.5, 0.25))


def check(upscaler: Upscaler, sides: Sequence[tuple[int, int]]) -> None:
    results = upscaler([picture(*side) for side in sides], **ASKED)
    for side, result in zip(sides, results, strict=True):
        assert np.abs(result.pixels.astype(int) - expected(*side)).max() <= 1


def check_end(cuda: FakeCuda) -> None:
    gc.collect()
    assert (cuda.violations, cuda.leaks()) == ([], [])


@given(calls=st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), SIDES), min_size=4, max_size=12))
@settings(max_examples=15)
def test_weights_of_any_sequence_of_degradations(fused: Path, calls: list[tuple[float, Any]]) -> None:
    """They stay in a lane until another degradation comes, or its memory moves; graphs read them in place."""
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_fakes(monkeypatch, cuda)
        with Upscaler.open(fused, "tensorrt", "cuda", OPTIONS) as upscaler:
            for noise, side in calls:
                (result,) = upscaler.upscale_pixels([picture(*side)], **{**ASKED, "noise": noise})
                wanted = enlarged(picture(*side), expected_shift(noise, 0.25))
                assert np.abs(result.pixels.astype(int) - wanted).max() <= 1
    check_end(cuda)


@given(calls=LISTS)
@settings(max_examples=15)
def test_any_sequence_of_shapes(bundle: Path, calls: list[list[tuple[int, int]]]) -> None:
    """Twice, so that the second time finds graphs and buffers of the first."""
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_fakes(monkeypatch, cuda)
        with Upscaler.open(bundle, "tensorrt", "cuda", OPTIONS) as upscaler:
            for sides in calls + calls:
                check(upscaler, sides)
    check_end(cuda)


@given(calls=LISTS, failures=FAILURES)
@settings(max_examples=40)
def test_failures_end_in_errors_and_the_next_call_works(
    bundle: Path, calls: list[list[tuple[int, int]]], failures: list[tuple[str, int]]
) -> None:
    cuda = FakeCuda()
    injected = 0
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_fakes(monkeypatch, cuda)
        with Upscaler.open(bundle, "tensorrt", "cuda", OPTIONS) as upscaler:
            for name, at in failures:
                cuda.fail(name, at)
                injected += name not in HARMLESS
            failed = 0
            for sides in calls + calls:
                try:
                    check(upscaler, sides)
                except JobError as error:
                    assert "cudaErrorUnknown" in str(error)
                    failed += 1
            assert failed <= injected
            cuda.failures.clear()
            check(upscaler, calls[0])
    check_end(cuda)


@given(sides=st.lists(SIDES, min_size=1, max_size=5), at=st.integers(1, 30), times=st.integers(1, 3))
@settings(max_examples=25)
def test_want_of_memory_changes_no_result(
    bundle: Path, sides: list[tuple[int, int]], at: int, times: int
) -> None:
    """Wherever an allocation fails, smaller pieces give the same picture."""
    cuda = FakeCuda()
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_fakes(monkeypatch, cuda)
        with Upscaler.open(bundle, "tensorrt", "cuda", OPTIONS) as upscaler:
            for number in range(times):
                cuda.fail("cudaMalloc", at + number, cuda.cudaError_t.cudaErrorMemoryAllocation)
            try:
                check(upscaler, sides)
            except JobError as error:  # where pieces are as small as they get at once
                assert (
                    "out of memory even with batches of 1, tiles of 4" in str(error)
                    or max(map(max, sides)) <= 8
                )
            cuda.failures.clear()
            check(upscaler, sides)
    check_end(cuda)


@given(calls=LISTS, memory=st.sampled_from([2**28, 2**18]), failures=FAILURES)
@settings(max_examples=15)
def test_threads_get_their_own_results(
    bundle: Path, calls: list[list[tuple[int, int]]], memory: int, failures: list[tuple[str, int]]
) -> None:
    cuda = FakeCuda(gpus=2)
    with pytest.MonkeyPatch.context() as monkeypatch:
        install_fakes(monkeypatch, cuda)
        with Upscaler.open(bundle, "tensorrt", "cuda:1", OPTIONS) as upscaler:
            cuda.memory = memory
            for name, at in failures:
                cuda.fail(name, at)

            def run(sides: list[tuple[int, int]]) -> str:
                try:
                    check(upscaler, sides)
                except JobError as error:
                    return str(error)
                return ""

            with ThreadPoolExecutor(4) as threads:
                errors = [error for error in threads.map(run, calls * 3) if error]
            assert len(errors) <= len(failures) or memory < 2**28
            assert all("cudaErrorUnknown" in error or "out of memory" in error for error in errors)
            cuda.failures.clear()
            cuda.memory = 2**28
            check(upscaler, calls[0])
    check_end(cuda)
