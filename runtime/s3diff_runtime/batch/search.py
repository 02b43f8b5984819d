"""Finds pictures: in files, folders and patterns, each once, and counts what it leaves out."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from s3diff_runtime.pictures.formats import SUFFIXES, not_read


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

    def __init__(self, output: Path) -> None:
        """Leave out a folder: where the results go."""
        self.problems: list[str] = []
        self._output = output.resolve()
        self._taken: set[Path] = set()
        self._left_out: Counter[tuple[str, str]] = Counter()

    def left_out(self) -> list[LeftOut]:
        """What was not taken so far, the most frequent first."""
        return [LeftOut(kind, reason, count) for (kind, reason), count in self._left_out.most_common()]

    def pictures(self, text: str) -> Iterator[tuple[Path, Path]]:
        """The pictures of a file, a folder or a pattern, with their paths below what of it is fixed.

        What an earlier input had is not found again.
        """
        path = Path(text)
        if path.is_dir():
            matches = {picture: picture.relative_to(path) for picture in self._below(path)}
        elif path.exists():
            matches = {path: Path(path.name)}
        else:
            matches = self._matches(path)
        if not matches:
            kinds = ", ".join(sorted(SUFFIXES))
            reason = f"holds no {kinds} files" if path.is_dir() else "does not exist, and matches nothing"
            self.problems.append(f"{text} {reason}")
        for source, relative in matches.items():
            # A link to a file is a picture of its own; what two ways lead to is taken once.
            if (real := source.parent.resolve() / source.name) not in self._taken:
                self._taken.add(real)
                yield source, relative

    def _below(self, folder: Path) -> Iterator[Path]:
        for _, files in self._folders(folder):
            for entry in files:
                path = Path(entry.path)
                if entry.name.startswith("."):
                    self._leave_out("hidden file", "hidden")
                elif not path.exists():
                    self._leave_out("link", "leads nowhere")
                elif not entry.is_file():
                    self._leave_out("pipe, socket or device", "not a regular file")
                elif reason := not_read(path):
                    self._leave_out(path.suffix.lower() or "no suffix", reason)
                else:
                    yield path

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
            below = [entry for entry in entries if Path(entry.path).is_dir()]
            yield path, [entry for entry in entries if entry not in below]
            taken = [Path(entry.path) for entry in below if self._searched(entry)]
            linked.extend(each for each in taken if each.is_symlink())
            waiting.extend(each for each in reversed(taken) if not each.is_symlink())

    def _searched(self, entry: os.DirEntry[str]) -> bool:
        if entry.name.startswith("."):
            self._leave_out("hidden folder", "hidden")
            return False
        return not Path(entry.path).resolve().is_relative_to(self._output)

    def _matches(self, pattern: Path) -> dict[Path, Path]:
        """The files that a pattern matches, relative to its leading folders without wildcards."""
        parts = pattern.parts
        fixed = Path()
        while parts and ((fixed / parts[0]).exists() or not glob.has_magic(parts[0])):
            fixed, parts = fixed / parts[0], parts[1:]
        found = self._matching(fixed, parts) if parts else ()
        return {path: path.relative_to(fixed) for path in found if path.is_file()}

    def _matching(self, path: Path, parts: tuple[str, ...]) -> Iterator[Path]:
        if not parts:
            yield path
            return
        first, rest = parts[0], parts[1:]
        if first == "**":
            for folder, _ in self._folders(path):
                yield from self._matching(folder, rest or ("*",))
        elif (path / first).exists():
            yield from self._matching(path / first, rest)
        elif glob.has_magic(first) and path.is_dir():
            for below in sorted(path.iterdir()):
                if fnmatchcase(below.name, first) and (below.name[0] != "." or first[0] == "."):
                    yield from self._matching(below, rest)

    def _leave_out(self, kind: str, reason: str) -> None:
        self._left_out[kind, reason] += 1
