"""Builds TensorRT engines from the graphs of a bundle, and finds the layer where a graph goes wrong.

Modules: `options` (what may be asked for), `shapes` (what engines serve), `api` (what differs between
TensorRT 10, 11 and TensorRT-RTX), `messages` (what they say), `building` (one engine), `adding` (all engines
of a bundle), `layers` (layer by layer comparisons).
"""

from __future__ import annotations

from s3diff_export.engines.adding import AddedEngines, EngineReport, add_engines, require_builder
from s3diff_export.engines.options import EngineOptions, SizeRange

__all__ = [
    "AddedEngines",
    "EngineOptions",
    "EngineReport",
    "SizeRange",
    "add_engines",
    "require_builder",
]
