"""What the parts of a manifest share: paths, hashes, tensors, and the strictness of their fields."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from s3diff_runtime.stages import Dtype

MANIFEST_NAME = "manifest.json"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and not set(path) & set('\\:*?"<>|') and PurePosixPath(path).as_posix() == path
    if not plain or not parts or path.startswith("/") or ".." in parts or path == MANIFEST_NAME:
        raise ValueError(f"{path!r} is not a plain relative path inside the bundle")
    return path


def _utc(moment: str) -> str:
    offset = datetime.fromisoformat(moment).utcoffset()
    if offset is None or offset:
        raise ValueError(f"{moment!r} is not an ISO 8601 time in UTC")
    return moment


UtcTime = Annotated[str, AfterValidator(_utc)]
RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Score = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """Frozen; unknown fields, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TensorSpec(Part):
    """An input or output of a stage: its name in the graph, its type, and its shape.

    An axis is its size, or a name where the size is free; equal names within a stage are equal sizes.
    """

    name: str
    dtype: Dtype
    shape: tuple[int | str, ...]


class FileRecord(Part):
    """What a file of the bundle must be: its hash, and its size in bytes."""

    sha256: Sha256
    size: int = Field(ge=0)


def total_size(files: Mapping[str, FileRecord]) -> int:
    """Bytes of files together."""
    return sum(record.size for record in files.values())
