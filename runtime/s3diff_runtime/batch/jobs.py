"""Plans a batch: which files are read, where each result goes, and what speaks against it before any work."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import FORMATS, SUFFIXES, Format

_SHOWN = 3
"""Problems that an error spells out; of the others it gives the number."""


@dataclass(frozen=True)
class Job:
    """One picture to upscale."""

    source: Path
    target: Path
    comparison: Path | None = None
    """Where the before/after picture goes, if one was asked for."""

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file that the job writes."""
        return (self.target,) if self.comparison is None else (self.target, self.comparison)


def plan_jobs(
    inputs: Sequence[str], output: Path, format: Format | None = None, compare: bool = False
) -> list[Job]:
    """Find the pictures and name their results.

    A file's result lies directly in `output`. A folder is searched at every depth, hidden files and `output`
    itself left out, and the results keep its structure; so do those of a glob pattern, below the part of the
    pattern that is fixed. Results have the names of their inputs, under the suffix of `format` if one is
    given. One input file and an `output` with the suffix of a picture make that file. Inputs named twice
    count once.

    Args:
        inputs: files, folders and glob patterns (`**` for any depth); what exists is no pattern.
        output: a folder, or for one input file a file.
        format: a key of `FORMATS`; by default that of each input, PNG where its name shows none.
        compare: whether each job also writes `<name>.compare.png` beside its result.

    Raises:
        RequestError: for inputs that do not exist or hold no pictures, results that would replace an input or
            each other, and an `output` that cannot be what it must be.
    """
    found, problems = _find(inputs, output)
    _refuse(problems)
    if _names_file(output):
        if len(inputs) != 1 or not Path(inputs[0]).is_file():
            raise RequestError(
                f"{output} names a file, but only one input file can go to a file; name a folder for more"
            )
        _require_suffix(output, format)
        targets = {path: output for path in found}
    else:
        if output.exists() and not output.is_dir():
            raise RequestError(f"{output} is a file; expected a folder, or a new file of {_suffix_list()}")
        targets = {path: _target(output / relative, format) for path, relative in found.items()}
    jobs = [
        Job(source, target, target.with_name(f"{target.stem}.compare.png") if compare else None)
        for source, target in targets.items()
    ]
    _refuse(list(_clashes(jobs)))
    return jobs


def output_folder(output: Path) -> Path:
    """The folder that the results go into, at whatever depth."""
    return output.parent if _names_file(output) else output


def refuse_existing(jobs: Iterable[Job]) -> None:
    """Raise `RequestError` when an output exists already."""
    existing = [path for job in jobs for path in job.outputs if path.exists()]
    if existing:
        others = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        raise RequestError(
            f"{existing[0]}{others}; pass --force to replace them, or --resume to keep what is whole"
        )


def _find(inputs: Sequence[str], output: Path) -> tuple[dict[Path, Path], list[str]]:
    """The pictures with their paths relative to the output, in order, and problems."""
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    problems: list[str] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            below = _pictures_below(path, output, problems)
            matches = {picture: picture.relative_to(path) for picture in below}
        elif path.exists():
            matches = {path: Path(path.name)}
        else:
            matches = _matches(text)
        if not matches:
            reason = (
                f"holds no {_suffix_list()} files" if path.is_dir() else "does not exist, and matches nothing"
            )
            problems.append(f"{text} {reason}")
        for source, relative in matches.items():
            if (real := source.resolve()) not in seen:
                seen.add(real)
                found[source] = relative
    return found, problems


def _pictures_below(folder: Path, output: Path, problems: list[str]) -> Iterator[Path]:
    own_results = output.resolve()

    def note(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be searched: {error.strerror}")

    for root, folders, files in os.walk(folder, onerror=note):
        below = Path(root)
        folders[:] = sorted(
            name for name in folders if name[0] != "." and (below / name).resolve() != own_results
        )
        for name in sorted(files):
            if name[0] != "." and Path(name).suffix.lower() in SUFFIXES:
                yield below / name


def _matches(pattern: str) -> dict[Path, Path]:
    """The files that a glob pattern matches, relative to its leading folders without wildcards."""
    if not glob.has_magic(pattern):
        return {}
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    paths = (Path(match) for match in sorted(glob.glob(pattern, recursive=True)))  # noqa: PTH207
    return {path: path.relative_to(fixed) for path in paths if path.is_file()}


def _target(path: Path, format: Format | None) -> Path:
    if format is not None:
        suffixes = FORMATS[format].suffixes
        return path if path.suffix.lower() in suffixes else path.with_suffix(suffixes[0])
    return path if path.suffix.lower() in SUFFIXES else path.with_name(f"{path.name}.png")


def _names_file(output: Path) -> bool:
    return output.suffix.lower() in SUFFIXES and not output.is_dir()


def _require_suffix(output: Path, format: Format | None) -> None:
    if format is not None and output.suffix.lower() not in FORMATS[format].suffixes:
        raise RequestError(f"{output} does not have a suffix of --format {format}; leave one of them out")


def _clashes(jobs: Sequence[Job]) -> Iterator[str]:
    sources = {job.source.resolve(): job.source for job in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs:
        for path in job.outputs:
            real = path.resolve()
            if real in sources:
                yield f"the result of {job.source} would replace the input {sources[real]}"
            elif real in writers:
                yield f"{writers[real]} and {job.source} would both be written to {path}"
            elif path.is_dir():
                yield f"{path} is a folder, where the result of {job.source} would go"
            writers.setdefault(real, job.source)


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - _SHOWN
        raise RequestError("; ".join(problems[:_SHOWN]) + (f"; and {more} more problems" if more > 0 else ""))


def _suffix_list() -> str:
    return ", ".join(sorted(SUFFIXES))
