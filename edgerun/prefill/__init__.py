"""Prompts in chunks on ONNX Runtime devices (NPU, GPU, CPU); decoding goes on from the same KV cache."""
