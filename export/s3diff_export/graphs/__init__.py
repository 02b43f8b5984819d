"""The stages of the network as ONNX graphs: merged, dynamic or fused LoRA, fp32 or fp16."""
