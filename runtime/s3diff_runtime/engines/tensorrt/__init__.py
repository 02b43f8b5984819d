"""Runs TensorRT and TensorRT-RTX engines on NVIDIA GPUs, through `cuda.bindings` and without torch.

Modules: `cuda` (the calls of the CUDA runtime), `api` (those of TensorRT), `buffers` and `lanes` (memory and
order on the device), `graphs` (CUDA graphs), `session` (the engine and its sessions), `identity` (which
engines of a bundle fit a machine).
"""

from __future__ import annotations
