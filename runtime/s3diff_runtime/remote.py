"""Files in object stores, and wherever else fsspec reads and writes, with the manners of paths.

What a URL needs beside itself (keys, a region, an endpoint) comes from where the store's own tools find it:
the environment, a profile, the role of a machine. URLs that hold a password are refused, and what a store
says of an error is told without what could be one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from s3diff_runtime.errors import JobError, RequestError, S3DiffError, first_line

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)", re.IGNORECASE | re.DOTALL)
_LOCAL = ("file", "local")
_OF_OUR_EXTRA = ("s3", "s3a", "gs", "gcs")
_OBJECT_STORES = frozenset({*_OF_OUR_EXTRA, "abfs", "abfss", "az", "adl", "oss", "oci"})
"""There an object appears when the whole of it has arrived, so that it needs no temporary name."""
_MOST_BYTES = 2**31
"""Of a file that is read: it is held in memory."""


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in a store, by its URL; names as `Path` has them."""

    url: str
    """Without a slash at its end."""
    size: int | None = field(default=None, compare=False)
    """Bytes as a listing had them, 0 for what was not there; None where nobody has looked."""

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, relative: str | PurePath) -> RemotePath:
        return RemotePath(f"{self.url}/{relative}")

    @property
    def protocol(self) -> str:
        """What stands before `://`, in lower case."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> RemotePath:
        """Another file in the same folder."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        """The same name with another suffix."""
        return self.with_name(self.stem + suffix)

    def is_below(self, folder: RemotePath) -> bool:
        """Whether it lies in a folder at any depth, or is it."""
        return f"{self.url}/".startswith(f"{folder.url}/")

    def looked_up(self) -> RemotePath | None:
        """Itself with its size, as the store has it; None where there is no such file. One request.

        Raises:
            RequestError: when the store does not answer, or does not say.
        """
        with _store(self, "looked up") as (files, path):
            try:
                found = files.info(path)
            except FileNotFoundError:
                return None
        return None if found["type"] == "directory" else replace(self, size=found["size"] or 0)

    def is_file(self) -> bool:
        """Whether the file is there and holds something. Asks the store where no listing has told."""
        found = self if self.size is not None else self.looked_up()
        return found is not None and bool(found.size)

    def children(self, missing_ok: bool = False) -> Iterator[tuple[RemotePath, bool]]:
        """What lies directly in the folder, by name, and whether each is a folder; files with their sizes.

        Raises:
            RequestError: for a folder or bucket that is not there, unless that is `missing_ok`, and where the
                store refuses.
        """
        with _store(self, "listed") as (files, path):
            try:
                found = files.ls(path, detail=True)
            except FileNotFoundError:
                if not missing_ok:
                    raise
                return
        for entry in sorted(found, key=lambda entry: entry["name"]):
            name, is_folder = entry["name"].removesuffix("/"), entry["type"] == "directory"
            if is_folder:  # where a key has two slashes, one of an empty name
                yield self / ("" if name == path else name.rpartition("/")[2]), True
            elif name != path:  # stores list a file itself, and a folder's own mark where somebody made one
                yield replace(self / name.rpartition("/")[2], size=entry["size"] or 0), False

    def matching(self) -> Iterator[RemotePath]:
        """The files that the URL matches as a pattern. Raises `RequestError` as `children`."""
        with _store(self, "searched") as (files, path):
            found = files.glob(path, detail=True)
        start = self.url.removesuffix(path)
        if start == self.url:
            raise RequestError(f"{self} is a pattern, which is not understood in such URLs; name a folder")
        for name, entry in sorted(found.items()):
            if entry["type"] != "directory":
                yield RemotePath(start + name, entry["size"] or 0)

    def read(self) -> bytes:
        """The content. Raises `RequestError` when it is not there, the store refuses, or it is over 2 GiB."""
        known = self if self.size is not None else self.looked_up()
        if known is None:
            raise RequestError(f"{self} does not exist")
        if (known.size or 0) > _MOST_BYTES:
            raise RequestError(f"{self} has {known.size} bytes, more than the {_MOST_BYTES} that are read")
        if not known.size:
            return b""
        with _store(self, "read") as (files, path):
            # Without its ends s3fs would ask for the size once more.
            content: bytes = files.cat_file(path, start=0, end=known.size)
        return content

    def download(self, target: Path, size: int) -> None:
        """Copy the content to this machine. Raises `RequestError`, also for another size, in bytes."""
        there = self.looked_up()
        if there is None or there.size != size:
            found = f"has {there.size} bytes" if there else "does not exist"
            raise RequestError(f"{self} {found}, expected {size} bytes")
        with _store(self, "read") as (files, path):
            files.get_file(path, str(target))

    def write(self, content: bytes) -> None:
        """Put the content there at once: nobody ever sees a part of it. Raises `JobError`."""
        with _store(self, "written", JobError) as (files, path):
            if self.protocol in _OBJECT_STORES:
                files.pipe_file(path, content)
                return
            folder, _, name = path.rpartition("/")
            own = f"{folder}/.s3diff-{secrets.token_hex(8)}.partial{PurePosixPath(name).suffix}"
            files.makedirs(folder, exist_ok=True)
            files.pipe_file(own, content)
            files.mv(own, path)

    def require_writable(self) -> None:
        """Find out before the work whether a file can be put into the folder, by doing it.

        Raises:
            RequestError: when the store refuses, or its bucket is not there.
        """
        with _store(self, "written") as (files, path):
            if self.protocol not in _OBJECT_STORES:
                files.makedirs(path, exist_ok=True)
            probe = f"{path}/.s3diff-writable"
            files.pipe_file(probe, b"")
            with suppress(PermissionError):  # may write, not remove: it stays, of 0 bytes, for the next run
                files.rm_file(probe)


Place = Path | RemotePath
"""Where a file or a folder is."""


def place_named(text: str) -> Place:
    """The path or the URL that a text names.

    Raises:
        RequestError: for a URL that holds a password or a signature.
    """
    found = _URL.fullmatch(text)
    if found is None:
        return Path(text)
    protocol, rest = found[1].lower(), found[2]
    if protocol in _LOCAL:
        return Path(rest)
    server = rest.partition("/")[0]
    if re.search(r":[^@]*@", server) or (protocol in ("http", "https") and ("@" in server or "?" in rest)):
        raise RequestError(
            f"this {protocol} URL holds a password or a query, which logs and reports would keep; pass "
            "credentials as the store's own tools take them, by environment or profile"
        )
    return RemotePath(f"{protocol}://{rest.rstrip('/')}")


def without_credentials(text: str) -> str:
    """A message of a store, without the users, passwords and signatures of the URLs in it."""
    return re.sub(r"(://)[^/\s@]*@|(\?)[^\s\"']+", lambda found: (found[1] or found[2]) + "…", text)


@contextmanager
def _store(place: RemotePath, done: str, kind: type[S3DiffError] = RequestError) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path in it, for something that is to be `done`.

    What it refuses is told in one line; stores and their libraries raise many kinds.
    """
    try:
        yield _opened(place)
    except S3DiffError:
        raise
    except FileNotFoundError as error:
        raise kind(f"{place} does not exist, or its bucket does not") from error
    except PermissionError as error:
        reason = without_credentials(first_line(error))
        raise kind(f"{place} may not be {done} with these credentials ({reason})") from error
    except Exception as error:
        raise kind(f"{place} cannot be {done}: {without_credentials(first_line(error))}") from error


def _opened(place: RemotePath) -> tuple[Any, str]:
    """Opens it without a cache of listings: stores change."""
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(place.url, use_listings_cache=False)
    except ImportError as error:
        ours = place.protocol in _OF_OUR_EXTRA or (error.name or "").startswith("fsspec")
        needs = "needs: pip install 's3diff-export[remote]'"
        lacks = needs if ours else f"needs more than is installed: {first_line(error)}"
        raise RequestError(f"{place} {lacks}") from error
    except ValueError as error:
        raise RequestError(f"{place} cannot be opened: {first_line(error)}") from error
    return files, path
