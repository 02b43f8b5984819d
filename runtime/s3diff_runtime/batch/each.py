"""Settings of single pictures, from a CSV file: the tags that a tagger found, or whatever else differs."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

from s3diff_runtime.batch.jobs import Job, resolved
from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.errors import RequestError, refuse
from s3diff_runtime.files import read_csv
from s3diff_runtime.options import infos_of
from s3diff_runtime.remote import Place, RemotePath, place_named
from s3diff_runtime.settings import Conditions, PictureSettings, UpscaleSettings

_INPUT = "input"
_FOR_ALL = ("scale",)
"""What a batch has in common, as it decides the sizes of results."""
COLUMNS = tuple(each.name for each in fields(PictureSettings) if each.name not in _FOR_ALL)


def read_each(path: Path, jobs: Iterable[Job]) -> dict[Place, UpscaleSettings]:
    """The settings of a CSV file by `Job.source`; an empty cell leaves a setting as it is for all.

    A picture is named by its path, from the file's folder or from the working one, by its URL, or by its name
    alone where only one input has it.

    Args:
        path: has the column `input`, and any of `COLUMNS`.
        jobs: pictures that may be named.

    Raises:
        RequestError: for a file that cannot be read, columns and values that are none, and pictures that are
            named twice or are no inputs; names the first few of all.
    """
    columns, rows = read_csv(path, f"--each {path}")
    strange = [name for name in columns if name not in (_INPUT, *COLUMNS)]
    if strange or _INPUT not in columns or len(set(columns)) != len(columns):
        found = ", ".join(map(str, columns)) or "none"
        raise RequestError(
            f"--each {path} has the columns {found}; expected {_INPUT}, and some of {', '.join(COLUMNS)}"
        )
    found_settings: dict[Place, UpscaleSettings] = {}
    problems: list[str] = []
    inputs = _Inputs(path, jobs)
    for number, row in enumerate(rows, start=2):
        try:
            source = inputs.named(row[_INPUT])
            if source in found_settings:
                raise RequestError(f"{row[_INPUT]} is named twice")
            found_settings[source] = _settings(row)
        except RequestError as error:
            problems.append(f"line {number}: {error}")
    refuse(problems, f"--each {path}", few=True)
    return found_settings


def require_able(
    manifest: Manifest, settings: PictureSettings, each: Mapping[Place, UpscaleSettings]
) -> None:
    """Raise `RequestError` where a bundle cannot do what is asked for all pictures, or for a single one."""
    Conditions.of(manifest, settings)
    for source, own in each.items():
        try:
            both: UpscaleSettings = {**settings.keywords, **own}
            Conditions.of(manifest, PictureSettings(**both))
        except RequestError as error:
            raise RequestError(f"{source}: {error}") from error


class _Inputs:
    """Finds inputs by what a row calls them."""

    def __init__(self, path: Path, jobs: Iterable[Job]) -> None:
        self._folder = path.parent
        self._by_path: dict[Place, Place] = {}
        self._by_name: dict[str, list[Place]] = {}
        for job in jobs:
            self._by_path[resolved(job.source)] = job.source
            self._by_name.setdefault(job.source.name, []).append(job.source)

    def named(self, text: str | None) -> Place:
        found = list(dict.fromkeys(self._candidates(text or "")))
        if len(found) != 1:
            what = "is the name of several inputs" if found else "is none of the inputs"
            raise RequestError(f"{text or 'an empty cell'} {what}; expected the path of one")
        return found[0]

    def _candidates(self, text: str) -> Iterator[Place]:
        place = place_named(text)
        paths = [resolved(folder / text) for folder in (self._folder, Path())] if text else []
        paths = [place] if isinstance(place, RemotePath) else paths
        known = [self._by_path[path] for path in paths if path in self._by_path]
        yield from known[:1] or self._by_name.get(text, [])


def _settings(row: Mapping[str | None, str | None]) -> UpscaleSettings:
    if None in row or None in row.values():
        raise RequestError("more or fewer cells than columns")
    values: dict[str, object] = {}
    for name in COLUMNS:
        text = (row.get(name) or "").strip()
        if text:
            values[name] = infos_of(PictureSettings)[name].value_of(name, text)
    settings = cast(UpscaleSettings, values)
    PictureSettings(**settings)  # refuses what is out of range
    return settings
