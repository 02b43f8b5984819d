"""Plans a batch: which files are read, where each result goes, and what speaks against it before any work."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from s3diff_runtime.batch.search import LeftOut, Search
from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.pictures.formats import FORMATS, SUFFIXES, WRITTEN_SUFFIXES, Format
from s3diff_runtime.remote import Place, place_named

_LONGEST_NAME = 255
"""Bytes of a file's name, on all file systems in use."""
_COMPARISON = ".compare.png"


@dataclass(frozen=True)
class Job:
    """One picture to upscale."""

    source: Place
    target: Place
    comparison: Place | None = None
    """Where the before/after picture goes, if one was asked for."""
    problem: str | None = None
    """Why it cannot be done, where that was found when others had begun."""

    @property
    def outputs(self) -> tuple[Place, ...]:
        """Every file that the job writes."""
        return (self.target,) if self.comparison is None else (self.target, self.comparison)


class Jobs(list[Job]):
    """The jobs of a batch, in order.

    Attributes:
        left_out: what lies in the folders that were searched and is not taken.
    """

    def __init__(self, jobs: Iterable[Job], left_out: Sequence[LeftOut]) -> None:
        super().__init__(jobs)
        self.left_out = tuple(left_out)


def plan_jobs(
    inputs: Sequence[str], output: Place, format: Format | None = None, compare: bool = False
) -> Jobs:
    """Find the pictures and name their results.

    A file's result lies directly in `output`. A folder is searched at every depth, links to folders too, each
    folder once; hidden files and `output` itself are left out, and the results keep its structure. So do
    those of a glob pattern, below the part of the pattern that is fixed. Results have the names of their
    inputs, under the suffix of `format` if one is given. One input file and an `output` with the suffix of a
    format that is written make that file. Inputs named twice count once.

    Args:
        inputs: files, folders and glob patterns (`**` for any depth), of this machine or as URLs; a part of a
            pattern that exists as it stands is no pattern.
        output: a folder, or for one input file a file.
        format: a key of `FORMATS`; by default that of each input, PNG where its name shows none that is
            written.
        compare: whether each job also writes `<name>.compare.png` beside its result, or, where two would
            share that name, `<name>.<suffix>.compare.png`.

    Raises:
        RequestError: for inputs that do not exist or hold no pictures, results that would replace an input or
            each other, names that are too long, and an `output` that cannot be what it must be.
    """
    search = Search(output)
    found = {source: relative for text in inputs for source, relative in search.pictures(text)}
    refuse(search.problems, few=True)
    suffix = output.suffix.lower()
    expected = f"a folder, or a new file of {', '.join(sorted(WRITTEN_SUFFIXES))}"
    if suffix in SUFFIXES - WRITTEN_SUFFIXES and not _is_folder(output):
        raise RequestError(f"{output} is of a format that is only read; expected {expected}")
    if _names_file(output):
        if len(inputs) != 1 or not place_named(inputs[0]).is_file():
            raise RequestError(
                f"{output} names a file, but only one input file can go to a file; name a folder for more"
            )
        if format is not None and suffix not in FORMATS[format].suffixes:
            raise RequestError(f"{output} does not have a suffix of --format {format}; leave one of them out")
        jobs = _jobs(dict.fromkeys(found, output), compare)
    else:
        if isinstance(output, Path) and output.exists() and not output.is_dir():
            raise RequestError(f"{output} is a file; expected {expected}")
        jobs = jobs_below(output, found, format, compare)
    refuse((problem for _, problem in clashes(jobs)), few=True)
    return Jobs(jobs, search.left_out())


def jobs_below(
    output: Place, found: Mapping[Place, PurePath], format: Format | None, compare: bool
) -> list[Job]:
    """The jobs of pictures whose results go below a folder, by their paths there; see `plan_jobs`."""
    return _jobs(_targets({source: output / path for source, path in found.items()}, format), compare)


def _jobs(targets: Mapping[Place, Place], compare: bool) -> list[Job]:
    comparisons = _comparisons(targets) if compare else {}
    return [Job(source, target, comparisons.get(source)) for source, target in targets.items()]


def output_folder(output: Place) -> Place:
    """The folder that the results go into, at whatever depth."""
    return output.parent if _names_file(output) else output


def refuse_existing(jobs: Iterable[Job]) -> None:
    """Raise `RequestError` when an output exists already."""
    existing = [path for job in jobs for path in job.outputs if exists(path)]
    if existing:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise RequestError(
            f"{existing[0]}{others}; pass --force to replace them, or --resume to keep what is whole"
        )


def _targets(paths: Mapping[Place, Place], format: Format | None) -> dict[Place, Place]:
    """Where each result goes, by source; `paths` are the names of the inputs there."""
    if format:
        suffixes = FORMATS[format].suffixes
        return {
            source: path if path.suffix.lower() in suffixes else path.with_suffix(suffixes[0])
            for source, path in paths.items()
        }
    kept = {path for path in paths.values() if path.suffix.lower() in WRITTEN_SUFFIXES}
    others = Counter(path.with_suffix(".png") for path in paths.values() if path not in kept)
    targets: dict[Place, Place] = {}
    for source, path in paths.items():
        target = path.with_suffix(".png")
        if path in kept:
            target = path
        elif path.suffix.lower() not in SUFFIXES or target in kept or others[target] > 1:
            target = path.with_name(f"{path.name}.png")
        targets[source] = target
    return targets


def _comparisons(targets: Mapping[Place, Place]) -> dict[Place, Place]:
    """Where each comparison goes, by source: beside the result, under a name that is its alone."""
    names = {source: target.with_name(target.stem + _COMPARISON) for source, target in targets.items()}
    wanted = Counter([*names.values(), *targets.values()])
    return {
        source: name if wanted[name] == 1 else name.with_name(targets[source].name + _COMPARISON)
        for source, name in names.items()
    }


def _names_file(output: Place) -> bool:
    return output.suffix.lower() in WRITTEN_SUFFIXES and not _is_folder(output)


def exists(place: Place) -> bool:
    """Whether something has the name of a result already."""
    return place.exists() if isinstance(place, Path) else place.is_file()


def _is_folder(place: Place) -> bool:
    """Whether a folder is there already; in a store they need not be, and the name alone tells."""
    return isinstance(place, Path) and place.is_dir()


def clashes(jobs: Sequence[Job]) -> Iterator[tuple[Job, str]]:
    """The jobs that would be in the way of inputs or of each other, or cannot be written; and why."""
    sources = {resolved(job.source): job.source for job in jobs}
    writers: dict[Place, Place] = {}
    for job in jobs:
        for path in job.outputs:
            if (length := len(os.fsencode(path.name))) > _LONGEST_NAME:
                yield job, f"{path.name} has {length} bytes, and file names end at {_LONGEST_NAME}"
                continue
            real = resolved(path)
            if real in sources:
                yield job, f"the result of {job.source} would replace the input {sources[real]}"
            elif real in writers:
                yield job, f"{writers[real]} and {job.source} would both be written to {path}"
            elif _is_folder(path):
                yield job, f"{path} is a folder, where the result of {job.source} would go"
            writers.setdefault(real, job.source)


def resolved(place: Place) -> Place:
    """What a place is whatever leads there; in stores nothing leads elsewhere."""
    return place.resolve() if isinstance(place, Path) else place
