"""Runs TensorRT and TensorRT-RTX engines on NVIDIA GPUs, through `cuda.bindings` and without torch.

Modules: `cuda` (the calls of the CUDA runtime), `api` and `messages` (those of TensorRT, and what it says),
`kernels` (those that are compiled on the GPU), `buffers` and `lanes` (memory and order on the device),
`graphs` (what runs a stage there),
`session` (a stage), `engine` (which engines of a bundle fit the machine, and their loading).
"""
