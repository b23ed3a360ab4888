"""Other engines, measured in the same session as edgerun: llama.cpp, Ollama, and servers of OpenAI's kind."""

from edgerun.profiling.peers.client import EndpointEngine, OllamaEngine, TextEngine
from edgerun.profiling.peers.llamacpp import LlamaCppEngine

__all__ = ["EndpointEngine", "LlamaCppEngine", "OllamaEngine", "TextEngine"]
