"""Files that exist whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from s3diff_runtime.errors import JobError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, its file takes the place of `path`.

    When the block fails, whatever it wrote is removed and `path` stays as it was. Missing folders are made.
    The temporary file keeps the suffix of `path`, from which writers of images choose the format.

    Raises:
        JobError: when the disk refuses (full, read-only, no permission).
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise JobError(f"could not write {path}: {reason}; check the disk and its permissions") from error
    finally:
        with suppress(OSError):  # where it could not be made, it cannot be removed
            temporary.unlink()
