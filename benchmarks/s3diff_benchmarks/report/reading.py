"""Reads reports back, which may come from anywhere."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from s3diff_benchmarks.report.model import Report
from s3diff_benchmarks.report.output import JSON_NAME
from s3diff_runtime.errors import RequestError

MOST_BYTES = 64 * 2**20


def read_report(path: Path) -> Report:
    """The report in a file, or in the folder that a benchmark wrote.

    Raises:
        RequestError: when there is none, or it is too large, damaged or of another revision.
    """
    file = path / JSON_NAME if path.is_dir() else path
    try:
        if file.stat().st_size > MOST_BYTES:
            raise RequestError(
                f"{file} has more than {MOST_BYTES >> 20} MiB; expected a report of s3diff-export bench"
            )
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RequestError(f"cannot read {file}: {error.strerror or error}; expected {JSON_NAME}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, found['loc'])) or 'file'}: {found['msg']}" for found in error.errors()
        ]
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise RequestError(f"{file} is no report of this version: {'; '.join(problems[:3])}{more}") from error
