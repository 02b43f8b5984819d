"""The pictures of a folder in a store: planned folder by folder, while the first of them are upscaled."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path

from s3diff_runtime.batch.jobs import Job, clashes, jobs_below
from s3diff_runtime.batch.search import HOLDS_NONE, LeftOut, Search
from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import SUFFIXES, Format
from s3diff_runtime.remote import Place, RemotePath, place_named


def folder_to_list(inputs: Sequence[str]) -> RemotePath | None:
    """The folder in a store that is the only input; None for everything else."""
    place = place_named(inputs[0])
    if len(inputs) > 1 or isinstance(place, Path) or glob.has_magic(place.url):
        return None
    return None if place.looked_up() else place


class ListedJobs:
    """The jobs of a remote folder, in order, which can be taken once. The next folder is listed ahead.

    Where two pictures would have one result, the second is a job with a `problem`: others have begun by then.

    Raises:
        RequestError: on construction, for a folder that cannot be listed or holds no pictures, and results
            that would lie among its pictures or above them.
    """

    def __init__(
        self, root: RemotePath, output: Place, format: Format | None, compare: bool, resume: bool
    ) -> None:
        if isinstance(output, RemotePath) and root.is_below(output):
            raise RequestError(f"{output} holds the input {root}, which results could replace; name another")
        self._search = Search(output)
        self._output, self._format, self._compare, self._resume = output, format, compare, resume
        parts = self._parts(root)
        first = next(parts, None)
        if first is None:
            raise RequestError(f"{root} {HOLDS_NONE}")
        if output.suffix.lower() in SUFFIXES:
            raise RequestError(f"{output} names a file, and {root} is a folder; expected a folder for it")
        self._waiting = chain([first], parts)

    @property
    def left_out(self) -> list[LeftOut]:
        """What was listed and not taken so far."""
        return self._search.left_out()

    def __iter__(self) -> Iterator[Job]:
        with ThreadPoolExecutor(1, "list") as lister:
            following = lister.submit(next, self._waiting, None)
            while (jobs := following.result()) is not None:
                following = lister.submit(next, self._waiting, None)
                yield from jobs

    def _parts(self, root: RemotePath) -> Iterator[list[Job]]:
        for found in self._search.folders(root):
            if found:
                jobs = jobs_below(self._output, found, self._format, self._compare)
                problems = {job.source: problem for job, problem in clashes(jobs)}
                jobs = [replace(job, problem=problems.get(job.source)) for job in jobs]
                yield looked_up(jobs) if self._resume else jobs


def looked_up(jobs: Iterable[Job]) -> list[Job]:
    """The same jobs, those outputs that are remote with the sizes that are there: one listing a folder."""
    jobs = list(jobs)
    names: dict[RemotePath, list[RemotePath]] = defaultdict(list)
    for path in (path for job in jobs for path in job.outputs):
        if isinstance(path, RemotePath):
            names[path.parent].append(path)
    sizes = {path: 0 for paths in names.values() for path in paths}
    for folder in names:
        sizes |= {path: path.size or 0 for path, _ in folder.children(missing_ok=True) if path in sizes}

    def known(path: Place) -> Place:
        return replace(path, size=sizes[path]) if isinstance(path, RemotePath) else path

    return [
        replace(job, target=known(job.target), comparison=job.comparison and known(job.comparison))
        for job in jobs
    ]


def refuse_filled(folder: Place) -> None:
    """Raise `RequestError` when a folder, where not all results' names are known yet, holds more than hidden
    files.
    """
    if isinstance(folder, RemotePath):
        names = [child.name for child, _ in folder.children(missing_ok=True)]
    else:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(not name.startswith(".") for name in names):
        raise RequestError(
            f"{folder} holds something already; pass --force to replace results in it, or --resume to keep "
            "those that are there"
        )
