"""Bundles that lie elsewhere, on the Hub or under a URL: fetched once, checked by hash, kept by content.

The cache has a folder for each manifest, by the hash of its text. What a name stands for is asked every time,
since that may change; the files only where the cache has no bundle with that very manifest. So a bundle is
there whole, with every hash compared, or not at all, and all that open the same one share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from socket import gaierror
from typing import Any, Protocol

from s3diff_runtime.bundle.manifest import Manifest
from s3diff_runtime.bundle.records import MANIFEST_NAME, FileRecord, total_size
from s3diff_runtime.errors import BundleError, JobError, RequestError, S3DiffError, first_line
from s3diff_runtime.files import cache_folder, replacing
from s3diff_runtime.remote import RemotePath, place_named, without_credentials

_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
_logger = logging.getLogger(__name__)


class Source(Protocol):
    """Where a bundle can be fetched from; `str` of it is its name."""

    def manifest(self) -> bytes:
        """The text of the manifest, as it is there now. Raises `RequestError` where it cannot be had."""

    def fetch(self, files: dict[str, FileRecord], folder: Path) -> None:
        """Put files of the bundle that the manifest names into a folder. Raises `RequestError`."""


@dataclass(frozen=True)
class StoredBundle:
    """A bundle's folder in a store."""

    folder: RemotePath

    def __str__(self) -> str:
        return str(self.folder)

    def manifest(self) -> bytes:
        """See `Source`."""
        return (self.folder / MANIFEST_NAME).read()

    def fetch(self, files: dict[str, FileRecord], folder: Path) -> None:
        """See `Source`."""
        for name, record in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).download(folder / name, record.size)


@dataclass(frozen=True)
class HubBundle:
    """A repository on the Hub, at a revision: a branch, a tag, or a commit."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository + (f"@{self.revision}" if self.revision else "")

    def manifest(self) -> bytes:
        """See `Source`. Where the Hub cannot be reached, the manifest that it was last seen to have."""
        return self._manifest_file.read_bytes()

    def fetch(self, files: dict[str, FileRecord], folder: Path) -> None:
        """See `Source`."""
        commit = self._manifest_file.parent.name  # all of one commit, whatever is pushed meanwhile
        with asking_hub(str(self)) as hub:
            hub.snapshot_download(
                self.repository, revision=commit, allow_patterns=list(files), local_dir=folder
            )
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # notes of the library, none of the bundle's

    @cached_property
    def _manifest_file(self) -> Path:
        with asking_hub(str(self)) as hub:
            return Path(hub.hf_hub_download(self.repository, MANIFEST_NAME, revision=self.revision))


def source_of(bundle: str | Path) -> Source | None:
    """Where a bundle must be fetched from; None for a folder of this machine, there or not.

    `owner/name` and `owner/name@revision` are repositories on the Hub, unless a folder `owner` is here.
    """
    if isinstance(bundle, str):
        place = place_named(bundle)
        if isinstance(place, RemotePath):
            return StoredBundle(place)
    found = hub_bundle(str(bundle))
    return None if found is None or Path(found.repository).parent.exists() else found


def hub_bundle(name: str) -> HubBundle | None:
    """What a name stands for on the Hub; None for one that no repository can have."""
    found = _REPOSITORY.fullmatch(name)
    return HubBundle(found[1], found[2]) if found else None


def local_bundle(bundle: str | Path) -> Path:
    """The folder of a bundle on this machine, fetched into the cache first where it lies elsewhere.

    Args:
        bundle: a folder; `owner/name`, or `owner/name@revision`, of the Hub; or a URL that fsspec opens.

    Raises:
        RequestError: where it cannot be had, or the extra is missing that fetches it.
        BundleError: when what is there is not what its manifest says.
        JobError: when the disk refuses.
    """
    source = source_of(bundle)
    if source is None:
        place = place_named(str(bundle))
        return place if isinstance(place, Path) else Path(bundle)
    content = source.manifest()
    folder = cache_folder() / "bundles" / hashlib.sha256(content).hexdigest()
    with _one_at_a_time(folder):
        if not folder.exists():
            download(source, folder, content)
    return folder


def download(source: Source, folder: Path, content: bytes) -> None:
    """Fetch a bundle and check it; the folder is there once every hash is right.

    Args:
        source: where from.
        folder: to make, or to replace.
        content: the manifest that was found.

    Raises:
        RequestError, BundleError, JobError: see `local_bundle`.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        (temporary / MANIFEST_NAME).write_bytes(content)
        try:
            files = Manifest.parse(temporary).files
            _logger.info("fetching %s: %d files, %.1f MiB", source, len(files), total_size(files) / 2**20)
            source.fetch(files, temporary)
            Manifest.read(temporary, check="hashes")
        except BundleError as error:
            raise BundleError(str(error).replace(str(temporary), str(source))) from error


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of this machine fetch, and the others wait for what it fetched."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise JobError(
            f"{folder.parent} cannot keep what is fetched ({error.strerror}); set XDG_CACHE_HOME to a folder"
        ) from error
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def asking_hub(name: str) -> Iterator[Any]:
    """Yield `huggingface_hub`, its bars on terminals alone; tell what it raises in the block in one line.

    Args:
        name: of the repository, for the message.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    except ModuleNotFoundError as error:
        raise RequestError(
            f"{name} is no folder here; of the Hub, it needs: pip install 's3diff-export[hub]'"
        ) from error
    reasons: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "can be had only after its terms are accepted on the Hub, and with a token"),
        (errors.RevisionNotFoundError, "is on the Hub, and has no such revision"),
        (errors.RepositoryNotFoundError, "is no folder here, and no repository of the Hub that may be read"),
        (errors.LocalEntryNotFoundError, "is not in the cache, and the Hub cannot be reached"),
        (errors.EntryNotFoundError, f"is a repository without {MANIFEST_NAME}, so it holds no bundle"),
        (errors.HFValidationError, "is no name that a repository can have"),
    )
    if not sys.stderr.isatty() and not are_progress_bars_disabled():
        disable_progress_bars()
    try:
        yield hub
    except S3DiffError:
        raise
    except Exception as error:  # the library, and those that it uses, raise many kinds
        told = next((what for kind, what in reasons if isinstance(error, kind)), None)
        if told is None:
            unreached = any(isinstance(each, ConnectionError | gaierror) for each in _with_causes(error))
            what = "cannot be had, the Hub is not reached" if unreached else "is refused by the Hub"
            told = f"{what}: {without_credentials(first_line(error))}"
        raise RequestError(f"{name} {told}") from error


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised after."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
