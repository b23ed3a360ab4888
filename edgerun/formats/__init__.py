"""File formats: GGUF, quantisation blocks, safetensors, llama2.c."""
