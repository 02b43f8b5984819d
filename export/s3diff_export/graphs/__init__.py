"""The stages of the network as ONNX graphs: merged, dynamic or fused LoRA, fp32 or fp16."""

from s3diff_export.graphs.onnx_export import export_onnx
from s3diff_export.graphs.options import GraphOptions
from s3diff_export.graphs.stages import StageGraph, stage_graphs

__all__ = ["GraphOptions", "StageGraph", "export_onnx", "stage_graphs"]
