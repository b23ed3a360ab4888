"""Make GGUF files: from llama2.c and Hugging Face checkpoints, and from other GGUF files."""

from edgerun.convert.checkpoint import convert_checkpoint
from edgerun.convert.quantize import quantize_gguf
from edgerun.convert.report import Fallback, Report

__all__ = ["Fallback", "Report", "convert_checkpoint", "quantize_gguf"]
