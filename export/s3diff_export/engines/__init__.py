"""Builds TensorRT engines from the graphs of a bundle.

Modules: `options` (what may be asked for), `shapes` (what engines serve), `api` (what differs between
TensorRT 10, 11 and TensorRT-RTX), `building` (one engine), `adding` (all engines of a bundle).
"""

from __future__ import annotations

from s3diff_export.engines.adding import AddedEngines, EngineReport, add_engines
from s3diff_export.engines.building import require_builder
from s3diff_export.engines.options import BatchRange, EngineOptions, SizeRange

__all__ = [
    "AddedEngines",
    "BatchRange",
    "EngineOptions",
    "EngineReport",
    "SizeRange",
    "add_engines",
    "require_builder",
]
