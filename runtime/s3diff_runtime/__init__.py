"""Opens an exported bundle and upscales images with it, without torch.

```
from s3diff_runtime import Upscaler

with Upscaler.open("bundle") as upscaler:
    upscaler("photograph.jpg").image.save("photograph-4x.png")
```
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from s3diff_runtime.errors import BundleError, JobError, RequestError, S3DiffError

if TYPE_CHECKING:
    from s3diff_runtime.upscale_options import UpscaleOptions
    from s3diff_runtime.upscaler import Result, Upscaler

__all__ = [
    "BundleError",
    "JobError",
    "RequestError",
    "Result",
    "S3DiffError",
    "UpscaleOptions",
    "Upscaler",
]

_HOMES = {
    "Result": "s3diff_runtime.upscaler",
    "UpscaleOptions": "s3diff_runtime.upscale_options",
    "Upscaler": "s3diff_runtime.upscaler",
}


def __getattr__(name: str) -> object:
    """Import what needs numpy and pydantic only when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
