"""Files and folders that exist whole or not at all, and files inside installed packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s3diff_runtime.errors import JobError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, it takes the place of `path`.

    The block writes a file or a folder there. When it fails, whatever it wrote is removed and `path` stays as
    it was. Missing folders are made. The temporary name keeps the suffix of `path`, from which writers of
    images choose the format.

    Raises:
        JobError: when the disk refuses (full, read-only, no permission).
    """
    temporary, outdated = (
        path.with_name(f".{path.stem}.{os.getpid()}.{state}{path.suffix}")
        for state in ("partial", "outdated")
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        yield temporary
        if path.is_dir():  # a rename cannot put one folder in the place of another that holds files
            path.replace(outdated)
        try:
            temporary.replace(path)
        except OSError:
            if outdated.exists():
                outdated.replace(path)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise JobError(f"could not write {path}: {reason}; check the disk and its permissions") from error
    finally:
        for leftover in (temporary, outdated):
            with suppress(OSError):  # what went wrong before is what the caller must hear
                _remove(leftover)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically. Raises `JobError` when the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def installed_file(package: str, name: str) -> Path | None:
    """A file of an installed top-level package, by its path inside; None where there is none.

    The package is found without running it, so that what it imports stays unloaded and may be absent.
    """
    spec = importlib.util.find_spec(package)
    paths = [Path(folder) / name for folder in (spec.submodule_search_locations or ())] if spec else []
    return next((path for path in paths if path.is_file()), None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
