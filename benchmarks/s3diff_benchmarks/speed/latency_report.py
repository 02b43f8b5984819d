"""Turns timings into the tables and plots of `bench latency`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import permutations

from s3diff_benchmarks.pictures.pixels import COLUMNS, NOTE, differences
from s3diff_benchmarks.report.model import Cell, Column, Plot, Table, seconds_columns
from s3diff_benchmarks.speed.ceilings import Ceilings
from s3diff_benchmarks.speed.cold_start import ColdStart
from s3diff_benchmarks.speed.flops import Work
from s3diff_benchmarks.speed.latency import CALL, END_TO_END, Case, Timings
from s3diff_benchmarks.statistics import Summary

_SECONDS = ("least", "median", "low", "high", "p95", "p99")
_NEW_PROCESS = ("launch", "imports", "open", "first image", "second image")
"""The fields of `ColdStart` that are seconds, in their order."""
_CASE = (Column(name="size", unit="pixels"), Column(name="batch"))
"""The fields of a `Case`."""
Works = Mapping[tuple[str, Case], Mapping[str, Work]]
"""Of every stage, by method and case."""


def latency_table(timings: Sequence[Timings]) -> Table:
    """Seconds of every method and case, beside the first method's in the same case."""
    first = {timing.case: Summary.of(timing.calls).median for timing in reversed(timings)}
    rows: list[tuple[Cell, ...]] = []
    for timing in timings:
        batch = timing.case.batch
        joules = sum(timing.joules) / len(timing.joules) / batch if timing.joules else None
        for part, samples in ((CALL, timing.calls), (END_TO_END, timing.whole)):
            summary = Summary.of(samples)
            seconds = [getattr(summary, name) for name in _SECONDS]
            of_call = (summary.median / first[timing.case], joules) if part == CALL else (None, None)
            key = (timing.method, *astuple(timing.case), part)
            rows.append((*key, summary.count, *seconds, batch / summary.median, *of_call))
    return Table(
        name="latency",
        title="Seconds for one call",
        columns=(
            Column(name="method"),
            *_CASE,
            *(Column(name=name) for name in ("part", "rounds")),
            *seconds_columns(_SECONDS),
            Column(name="rate", unit="images/s", better="higher"),
            Column(name="time, first method = 1"),
            Column(name="energy", unit="J/image", better="lower"),
        ),
        rows=tuple(rows),
        key=4,
        note=(
            "size: of the square input, a quarter of the result's. call: from pixels to pixels; end to end: "
            "from PNG to PNG, in one thread. low and high: 95 % confidence interval of the median."
        ),
    )


def stage_table(timings: Sequence[Timings], works: Works, ceilings: Ceilings | None) -> Table:
    """Median seconds of every stage, then of the call, and what they achieve of the machine's ceiling."""
    rows: list[tuple[Cell, ...]] = []
    for timing in timings:
        whole = Summary.of(timing.whole).median
        stages = works.get((timing.method, timing.case), {})
        known = {**stages, CALL: Work.of_all(stages.values())}
        for stage, samples in {**timing.stages, CALL: timing.calls}.items():
            seconds = Summary.of(samples).median
            key = (timing.method, *astuple(timing.case), stage)
            achieved = _achieved(known.get(stage), seconds, ceilings)
            rows.append((*key, seconds, 100 * seconds / whole, *achieved))
    return Table(
        name="stages",
        title="Where the time goes",
        columns=(
            Column(name="method"),
            *_CASE,
            Column(name="stage"),
            Column(name="time", unit="s"),
            Column(name="share", unit="%"),
            Column(name="work", unit="TFLOP"),
            Column(name="intensity", unit="FLOP/byte"),
            Column(name="achieved", unit="TFLOP/s"),
            *(Column(name=f"of the {limit}", unit="%") for limit in ("matrix product", "roof")),
        ),
        rows=tuple(rows),
        key=4,
        note=(
            "Medians; share: of end to end. upload and download: copies to the device and back. work: "
            "convolutions and matrix products, counted in the graphs. The roof is the least of the matrix "
            "product's speed and what the copy's bandwidth allows for weights, inputs and outputs."
        ),
    )


def agreement_table(timings: Sequence[Timings], references: Sequence[str]) -> Table:
    """How far the methods' images are from each other: times of different results do not compare.

    Args:
        timings: with images.
        references: names of the methods that the others are held against.
    """
    rows: list[tuple[Cell, ...]] = []
    for one, other in permutations(timings, 2):
        comparable = other.method in references and other.case == one.case
        if comparable and one.image is not None and other.image is not None:
            error, psnr, _, largest = differences([(one.image, other.image)])
            rows.append((one.method, other.method, *astuple(one.case), error, psnr, largest))
    return Table(
        name="agreement",
        title="The same picture",
        columns=(
            *(Column(name=name) for name in ("method", "against")),
            *_CASE,
            *(column for column in COLUMNS if column.name != "PSNR of the worst"),
        ),
        rows=tuple(rows),
        key=4,
        note=f"{NOTE} Bins and merged baselines answer with the weights of another degradation.",
    )


def cold_start_table(found: Mapping[str, ColdStart], times: int) -> Table:
    """New processes: one row for each method."""
    return Table(
        name="cold-start",
        title="A new process",
        columns=(
            Column(name="method"),
            Column(name="ready", unit="s", better="lower"),
            *(Column(name=name, unit="s") for name in _NEW_PROCESS),
            *(Column(name=f"{held} memory", unit="MiB", better="lower") for held in ("host", "device")),
        ),
        rows=tuple((name, one.ready, *astuple(one)) for name, one in found.items()),
        note=(
            f"Medians of {times} processes, files in the page cache. ready: from the start of the process to "
            "the first image; host memory: the most that was resident."
        ),
    )


def plots(timings: Sequence[Timings]) -> Iterator[Plot]:
    """Time by stage, time by method, and images per second by batch where several were measured."""
    first = timings[0].case
    yield Plot(
        name="methods",
        title="One call, by size and batch",
        kind="bar",
        table="latency",
        x=("size", "batch"),
        y="median",
        by="method",
        where={"part": CALL},
        x_label="size × batch",
    )
    yield Plot(
        name="stages",
        title=f"Where the time goes, {first.label}",
        kind="bar",
        table="stages",
        x="stage",
        y="time",
        by="method",
        where={"size": first.side, "batch": first.batch, "stage": _stages(timings)},
    )
    if len({timing.case.batch for timing in timings if timing.case.side == first.side}) > 1:
        yield Plot(
            name="batches",
            title=f"Images per second by batch, {first.side} pixels",
            kind="line",
            table="latency",
            x="batch",
            y="rate",
            by="method",
            where={"size": first.side, "part": CALL},
            log_x=True,
            from_zero=True,
        )


def roofline(timings: Sequence[Timings], method: str, ceilings: Ceilings) -> Plot:
    """The stages of one method, in every case, by their intensity, below the machine's ceilings."""
    return Plot(
        name="roofline",
        title=f"Roofline, {ceilings.precision} on {ceilings.device}",
        kind="roofline",
        table="stages",
        x="intensity",
        y="achieved",
        by="stage",
        where={"method": method, "stage": _stages(timings)},
    )


def table3_seconds(timings: Sequence[Timings]) -> dict[str, float]:
    """Each method's median call for one image, 128→512; empty where that was not measured."""
    return {
        timing.method: Summary.of(timing.calls).median for timing in timings if timing.case == Case(128, 1)
    }


def _stages(timings: Sequence[Timings]) -> tuple[str, ...]:
    """All, without the call that they make up."""
    return tuple(dict.fromkeys(stage for timing in timings for stage in timing.stages))


def _achieved(work: Work | None, seconds: float, ceilings: Ceilings | None) -> tuple[Cell, ...]:
    if work is None or not work.flops or not seconds:
        return None, None, None, None, None
    rate = work.flops / seconds
    roofs = (ceilings.flops, ceilings.at(work.intensity)) if ceilings else (None, None)
    shares = [roof and 100 * rate / roof for roof in roofs]
    return work.flops / 1e12, work.intensity, rate / 1e12, *shares
