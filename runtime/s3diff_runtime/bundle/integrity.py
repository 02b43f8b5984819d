"""Compares the files of a bundle with what its manifest says of them, and reads none that is not inside."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path

from s3diff_runtime.bundle.records import MANIFEST_NAME, FileRecord
from s3diff_runtime.errors import BundleError

_STRAYS = frozenset({"thumbs.db", "desktop.ini"})
"""Besides hidden files, what desktops leave in folders."""
HASHED_BELOW = 4 * 2**20
"""Files of fewer bytes are hashed on every opening: graphs, tokenizers, the weights of small stages."""


def file_problems(
    folder: Path, files: Mapping[str, FileRecord], graph_folders: Iterable[str], hash_all: bool
) -> Iterator[str]:
    """Describe every file that is missing, altered, truncated, or in the bundle without being recorded.

    ONNX Runtime reads external weights from the folder of a graph, so a file there that the manifest does not
    name could reach the network unchecked; it is a problem too. Hidden files, which desktops leave, are not.

    Args:
        folder: of the bundle.
        files: the records by relative POSIX path.
        graph_folders: relative paths of the folders that hold graphs.
        hash_all: hash large files too; the small ones always are.

    Yields:
        One line a problem: the file, what was expected, what was found.
    """
    root = folder.resolve()
    for name, record in files.items():
        problem = _problem(root, name, record, hash_all)
        if problem:
            yield problem
    for directory in sorted(graph_folders):
        if not _lies_inside((root / directory).resolve(), root):
            continue  # nothing out there is looked at; the files that would be in it are problems already
        for path in sorted((root / directory).glob("[!.]*")):
            name = path.relative_to(root).as_posix()
            if path.is_file() and name not in (*files, MANIFEST_NAME) and path.name.lower() not in _STRAYS:
                yield f"{name} is not in the manifest"


def _problem(root: Path, name: str, record: FileRecord, hash_all: bool) -> str | None:
    try:
        with opened_inside(root, name) as file:
            size = os.fstat(file.fileno()).st_size
            if size != record.size:
                return f"{name} has {size} bytes, expected {record.size}"
            if hash_all or size < HASHED_BELOW:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != record.sha256:
                    return f"{name} was altered (sha256 {found[:12]}…, expected {record.sha256[:12]}…)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} {unreadable(error)}"
    return None


class UnsafeFile(OSError):
    """A file that is not opened, because of what it is."""


def unreadable(error: OSError) -> str:
    """What is the matter with a file that `opened_inside` did not open, as the rest of a sentence."""
    return str(error) if isinstance(error, UnsafeFile) else f"cannot be read ({error.strerror})"


def opened_inside(root: Path, name: str) -> BufferedReader:
    """Open a file of a bundle to read, if it is a regular one that lies in it; waits for nothing.

    The Hub's cache holds bundles as links, from `snapshots/<revision>` to `blobs` beside; these are inside.

    Args:
        root: of the bundle, resolved.
        name: relative to it.

    Raises:
        OSError: for anything else; see `unreadable`.
    """
    try:
        real = (root / name).resolve(strict=True)
    except RuntimeError as error:  # how Python below 3.13 calls it
        raise UnsafeFile("is a circle of links") from error
    if not _lies_inside(real, root):
        raise UnsafeFile("is a link that leaves the bundle; copy what it leads to (cp -rL BUNDLE COPY)")
    descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeFile("is no regular file")
    return os.fdopen(descriptor, "rb")


def _lies_inside(real: Path, root: Path) -> bool:
    """Whether a file or folder lies in a bundle, or among the blobs of the Hub's cache that holds it."""
    cache = next((folder.parent for folder in root.parents if folder.name == "snapshots"), None)
    is_blob = cache is not None and "--" in cache.name and real.parent == cache / "blobs"
    return is_blob or real.is_relative_to(root)


def sha256(path: Path) -> str:
    """The hash of a file in hexadecimal. Raises `OSError` when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_content(folder: Path, name: str, record: FileRecord | None) -> bytes:
    """Read a file of a bundle once, and return the very bytes whose size and hash were found right.

    Raises:
        BundleError: when the manifest does not name the file, or it is not what the manifest says.
    """
    again = "copy the bundle again, or rebuild it"
    if record is None:
        raise BundleError(f"{name} is not among the files of the manifest of {folder}; {again}")
    try:
        with opened_inside(folder.resolve(), name) as file:
            content = file.read(record.size + 1)
    except OSError as error:
        raise BundleError(f"{folder / name} {unreadable(error)}; {again}") from error
    found = hashlib.sha256(content).hexdigest()
    if len(content) != record.size or found != record.sha256:
        raise BundleError(
            f"{folder / name} was altered (sha256 {found[:12]}…, expected {record.sha256[:12]}…); {again}"
        )
    return content
