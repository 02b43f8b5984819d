"""Finds pictures: in files, folders and patterns, each once, and counts what it leaves out."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from s3diff_runtime.errors import RequestError
from s3diff_runtime.pictures.formats import SUFFIXES, not_read
from s3diff_runtime.remote import Place, RemotePath, place_named

HOLDS_NONE = f"holds no {', '.join(sorted(SUFFIXES))} files"


@dataclass(frozen=True)
class LeftOut:
    """Files or folders, inside a folder that was searched, of one kind and not taken for one reason."""

    kind: str
    """Their suffix, or what they are in place of regular files with one."""
    reason: str
    count: int

    def as_json(self) -> dict[str, str | int]:
        """The entry of a report."""
        return asdict(self)


class Search:
    """Finds the pictures of inputs, one after the other.

    Attributes:
        problems: of inputs that do not exist, hold no pictures or cannot be searched.
    """

    def __init__(self, output: Place) -> None:
        """Leave out a folder: where the results go."""
        self.problems: list[str] = []
        self._output = output.resolve() if isinstance(output, Path) else output
        self._taken: set[Place] = set()
        self._left_out: Counter[tuple[str, str]] = Counter()

    def left_out(self) -> list[LeftOut]:
        """What was not taken so far, the most frequent first."""
        return [LeftOut(kind, reason, count) for (kind, reason), count in self._left_out.most_common()]

    def pictures(self, text: str) -> Iterator[tuple[Place, PurePath]]:
        """The pictures of a file, a folder or a pattern, with their paths below what of it is fixed.

        What an earlier input had is not found again.
        """
        place = place_named(text)
        matches: dict[Place, PurePath]
        lacking = "does not exist, and matches nothing"
        if isinstance(place, RemotePath):
            try:
                matches = dict(self._remote_matches(place))
            except RequestError as error:
                self.problems.append(str(error))
                return
        elif _says(place.is_dir):
            matches, lacking = dict(self._below(place)), HOLDS_NONE
        elif _says(place.exists):
            matches = {place: Path(place.name)}
        else:
            matches = dict(self._matches(place))
        if not matches:
            self.problems.append(f"{place} {lacking}")
        for source, relative in matches.items():
            # A link to a file is a picture of its own; what two ways lead to is taken once.
            real = source.parent.resolve() / source.name if isinstance(source, Path) else source
            if real not in self._taken:
                self._taken.add(real)
                yield source, relative

    def folders(self, root: RemotePath) -> Iterator[dict[Place, PurePath]]:
        """The pictures of a remote folder, those of each folder at any depth by themselves.

        Raises:
            RequestError: when the folder cannot be listed.
        """
        waiting = [(root, PurePosixPath())]
        while waiting:
            folder, relative = waiting.pop()
            pictures: dict[Place, PurePath] = {}
            below = []
            for child, is_folder in folder.children():
                if self._is_left_out(child.name, is_folder):
                    continue
                if is_folder:
                    below.append((child, relative / child.name))
                elif reason := not_read(child):
                    self._leave_out(child.suffix.lower() or "no suffix", reason)
                else:
                    pictures[child] = relative / child.name
            waiting += [each for each in reversed(below) if each[0] != self._output]
            yield pictures

    def _remote_matches(self, place: RemotePath) -> Iterator[tuple[Place, PurePath]]:
        """As `pictures`: a file that exists as it stands is no pattern."""
        found = place.looked_up()
        if found is not None:
            yield found, PurePosixPath(found.name)
        elif not glob.has_magic(place.url):
            for pictures in self.folders(place):
                yield from pictures.items()
        else:
            parts = place.url.split("/")
            fixed = "/".join(parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
            for match in place.matching():
                names = match.url.removeprefix(f"{fixed}/").split("/")
                if not any([self._is_left_out(name, is_folder=name is not names[-1]) for name in names]):
                    yield match, PurePosixPath(*names)

    def _is_left_out(self, name: str, is_folder: bool) -> bool:
        """Whether something is hidden, or has a name that would lead out of the folder of the results."""
        kind = "folder" if is_folder else "file"
        if name in ("", ".", "..") or "\\" in name or "\0" in name:
            self._leave_out(kind, "a name that not all disks have")
        elif name.startswith("."):
            self._leave_out(f"hidden {kind}", "hidden")
        else:
            return False
        return True

    def _below(self, folder: Path) -> Iterator[tuple[Path, Path]]:
        for _, files in self._folders(folder):
            for entry in files:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    self._leave_out("hidden file", "hidden")
                elif not _says(path.exists):
                    self._leave_out("link", "leads nowhere")
                elif not entry.is_file():
                    self._leave_out("pipe, socket or device", "not a regular file")
                elif reason := not_read(path):
                    self._leave_out(path.suffix.lower() or "no suffix", reason)
                else:
                    yield path, path.relative_to(folder)

    def _folders(self, folder: Path) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
        """A folder and those at any depth below, each once, with what they hold besides folders.

        Links are followed last, so that what can be reached without them keeps its place.
        """
        seen: set[Path] = set()
        waiting, linked = [folder], deque[Path]()
        while waiting or linked:
            path = waiting.pop() if waiting else linked.popleft()
            real = path.resolve()
            if real in seen or (
                path != folder and path.is_symlink() and real in path.parent.resolve().parents
            ):
                self._leave_out("linked folder", "searched already, or around itself")
                continue
            seen.add(real)
            try:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError as error:
                self.problems.append(f"{path} cannot be searched: {error.strerror}")
                continue
            below = [entry for entry in entries if _says(Path(entry.path).is_dir)]
            yield path, [entry for entry in entries if entry not in below]
            taken = [Path(entry.path) for entry in below if self._searched(entry)]
            linked.extend(each for each in taken if each.is_symlink())
            waiting.extend(each for each in reversed(taken) if not each.is_symlink())

    def _searched(self, entry: os.DirEntry[str]) -> bool:
        if entry.name.startswith("."):
            self._leave_out("hidden folder", "hidden")
            return False
        inside = isinstance(self._output, Path) and Path(entry.path).resolve().is_relative_to(self._output)
        return not inside

    def _matches(self, pattern: Path) -> Iterator[tuple[Path, Path]]:
        """The files that a pattern matches, relative to its leading folders without wildcards."""
        parts = pattern.parts
        fixed = Path()
        while parts and (_says((fixed / parts[0]).exists) or not glob.has_magic(parts[0])):
            fixed, parts = fixed / parts[0], parts[1:]
        found = self._matching(fixed, parts) if parts else ()
        yield from ((path, path.relative_to(fixed)) for path in found if _says(path.is_file))

    def _matching(self, path: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        if not parts:
            yield path
            return
        first, rest = parts[0], parts[1:]
        if first == "**":
            for folder, _ in self._folders(path):
                yield from self._matching(folder, rest or ("*",))
        elif _says((path / first).exists):
            yield from self._matching(path / first, rest)
        elif glob.has_magic(first) and _says(path.is_dir):
            for below in sorted(path.iterdir()):
                if fnmatchcase(below.name, first) and (below.name[0] != "." or first[0] == "."):
                    yield from self._matching(below, rest)

    def _leave_out(self, kind: str, reason: str) -> None:
        self._left_out[kind, reason] += 1


def _says(ask: Callable[[], bool]) -> bool:
    """What a path answers; no where it leads to a place that cannot be looked at."""
    with suppress(OSError):
        return ask()
    return False
