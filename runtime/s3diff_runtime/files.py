"""Files and folders that exist whole or not at all, and files inside installed packages.

What is being written lies in a hidden folder `.s3diff-<random>.partial` beside its target, on which the
writer holds a lock. So two writers of one target never share a name, and what a killed writer left is told
from what a living one is working on: nobody holds its lock. The next writer in the same folder removes it;
or, where the kill came while one folder took the place of another on a system that cannot exchange them in
one step, puts the old one back first.
"""

import csv
import ctypes
import errno
import fcntl
import importlib.util
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from s3diff_runtime.errors import JobError, RequestError

_SUFFIX = ".partial"
_PATTERN = f".s3diff-*{_SUFFIX}"
_REPLACED = "replaced"
"""Folder, inside a writer's own, that holds what the target was, under its name."""
_EXCHANGE, _AT_CWD = 2, -100  # RENAME_EXCHANGE, AT_FDCWD of Linux
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
_logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well, what it wrote there takes the place of `path`.

    The block writes a file or a folder. When it fails or is interrupted, whatever it wrote is removed and
    `path` stays as it was. Missing folders are made. The temporary name keeps the suffix of `path`, from
    which writers of images choose the format.

    Raises:
        JobError: when the disk refuses (full, read-only, no permission).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy_up(path.parent)
        with _own_folder(path.parent) as own:
            temporary = own / f"new{path.suffix}"
            yield temporary
            _take_place(temporary, path, own)
    except OSError as error:
        reason = error.strerror or error
        raise JobError(f"could not write {path}: {reason}; check the disk and its permissions") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically. Raises `JobError` when the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_absent(path: Path, force: bool) -> None:
    """Raise `RequestError` for a file or folder that is there and may not be replaced."""
    if path.exists() and not force:
        raise RequestError(f"{path} exists; pass --force to replace it")


def is_vacant(path: Path) -> bool:
    """Whether a folder can be written there without taking anything's place, but that of an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def require_replaceable(target: Path, force: bool, marker: str, what: str) -> None:
    """Raise `RequestError` where a folder to be written is in the way.

    Args:
        target: the folder, there or not.
        force: whether what is there may be replaced.
        marker: the file that tells a folder of ours, which alone is replaced, besides one that is empty.
        what: such a folder is.
    """
    require_absent(target, force)
    if not is_vacant(target) and not (target / marker).is_file():
        raise RequestError(f"{target} is no {what}, and only a {what} is replaced; name another output")


def read_csv(path: Path, called: str) -> tuple[list[str], list[dict[str | None, str | None]]]:
    """The columns and the rows of a CSV file in UTF-8, with a byte order mark or without.

    Raises `RequestError` when it cannot be read; the message begins with what the file is `called`.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            return list(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeError, csv.Error) as error:
        raise RequestError(f"{called} cannot be read ({error}); expected a CSV file in UTF-8") from error


def tidy_up(folder: Path, *, again: bool = False) -> None:
    """Remove what writers left in a folder that were killed, and tell; put back what one had moved aside.

    Looks into each folder once a process, unless it is asked `again`: a batch writes many files into one.
    """
    if again:
        _tidy_up.cache_clear()
    _tidy_up(os.path.realpath(folder))


def cache_folder() -> Path:
    """Where the user's system keeps what can be had again: `s3diff-export` in `XDG_CACHE_HOME`.

    Raises `JobError` for a user without a home, as containers have.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3diff-export"
    except RuntimeError as error:
        raise JobError("there is no home to keep a cache in; set XDG_CACHE_HOME to a folder") from error


def installed_file(package: str, name: str) -> Path | None:
    """A file of an installed top-level package, by its path inside; None where there is none.

    The package is found without running it, so that what it imports stays unloaded and may be absent.
    """
    spec = importlib.util.find_spec(package)
    paths = [Path(folder) / name for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((path for path in paths if path.is_file()), None)


# --- a writer's own folder ------------------------------------------------------------------------


@contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder whose lock this block holds; it is removed with the block."""
    lock = None
    try:
        while lock is None:
            own = parent / f".s3diff-{secrets.token_hex(8)}{_SUFFIX}"
            own.mkdir()
            lock = _locked(own)  # None where somebody took it for a dead one before it was locked
        yield own
    finally:
        try:
            _put_back(own)
            _remove(own)
        finally:
            if lock is not None:
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """The lock of a writer's folder, to be closed; None while somebody holds it, or where there is none."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return lock
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            os.close(lock)
            raise
    os.close(lock)
    return None


def _take_place(new: Path, target: Path, own: Path) -> None:
    """Put what was written in the place of the target, in one step where the system can."""
    if not target.is_dir() or target.is_symlink() or not new.is_dir():
        new.replace(target)
    elif not _exchange(new, target):
        (own / _REPLACED).mkdir()
        target.replace(own / _REPLACED / target.name)  # whatever comes now, `_put_back` finds it there
        new.replace(target)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders take each other's names at once; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


# --- what killed writers left ---------------------------------------------------------------------


@cache
def _tidy_up(folder: str) -> None:
    for left in sorted(Path(folder).glob(_PATTERN)):
        with suppress(OSError):  # another user's, or a file system without locks: not surely dead
            lock = _locked(left)
            if lock is None:
                continue
            try:
                _put_back(left)
                _remove(left)
                _logger.warning("removed %s, which an interrupted run had left", left)
            finally:
                os.close(lock)


def _put_back(left: Path) -> None:
    """Where a writer was stopped between moving the old folder aside and putting the new one there."""
    for aside in (left / _REPLACED).glob("*"):
        target = left.parent / aside.name
        if not target.exists():
            aside.replace(target)
            _logger.warning("put %s back, which an interrupted run had moved aside", target)


def _remove(path: Path) -> None:
    with suppress(OSError):  # what went wrong before is what the caller must hear
        shutil.rmtree(path)
