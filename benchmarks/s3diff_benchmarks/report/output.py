"""Where the report of a benchmark goes: the options of every command, and what may be replaced."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from s3diff_runtime.errors import refuse
from s3diff_runtime.options import Options, option

JSON_NAME = "report.json"
INDEX_NAME = "index.json"
"""Of a folder that holds the folders of several reports."""
FORMAT = "s3diff-bench"
"""How both say what they are, in their first field."""
_HEAD = 64
"""Bytes of a file that hold its first field."""


@dataclass(frozen=True)
class Output(Options):
    """Where a report goes."""

    folder: Path | None = option(
        None,
        "Folder to make, for the report as JSON, Markdown and plots; else only the terminal.",
        flags=("-o", "--output"),
    )
    force: bool = option(False, "Replace the report in that folder.")
    html: bool = option(False, "Also write report.html, one page that opens from disk.")
    as_json: bool = option(False, "Print the report as JSON.", flags=("--json",))

    def problems(self) -> Iterator[str]:
        """What does not go together."""
        if self.folder is None and (self.html or self.force):
            yield "--html and --force are about a folder; name one with --output"

    def check_folder(self, marker: str = JSON_NAME) -> None:
        """Refuse a folder that is in the way; to be called before any work.

        Args:
            marker: the file that a folder must hold, written by a benchmark, to be replaced.

        Raises:
            RequestError: when the folder holds something else, or a report that `force` does not give up.
        """
        refuse(self._in_the_way(marker))

    def _in_the_way(self, marker: str) -> Iterator[str]:
        if self.folder is None or not (self.folder.exists() or self.folder.is_symlink()):
            return
        if _is_empty(self.folder):
            return
        if not _is_ours(self.folder / marker):
            yield f"{self.folder} exists and is no such report; choose another folder"
        elif not self.force:
            yield f"{self.folder} holds a report; pass --force to replace it"


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _is_ours(marker: Path) -> bool:
    """Whether a benchmark wrote the file, so that its folder may be replaced."""
    if marker.parent.is_symlink() or not marker.is_file():
        return False
    with marker.open("rb") as file:
        return f'"{FORMAT}"'.encode() in file.read(_HEAD)
