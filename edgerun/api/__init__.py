"""The library that applications embed.

from edgerun import LLM

with LLM("model.gguf") as llm:
    print(llm.chat("Why is the sky blue?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgerun.api.llm import LLM
from edgerun.engine import (
    CallDelta,
    CancelToken,
    Chunk,
    Completion,
    SamplingParams,
    Score,
    Session,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)

if TYPE_CHECKING:
    from edgerun.api.async_llm import AsyncLLM

__all__ = [
    "LLM",
    "AsyncLLM",
    "CallDelta",
    "CancelToken",
    "Chunk",
    "Completion",
    "SamplingParams",
    "Score",
    "Session",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "Usage",
]


def __getattr__(name: str) -> Any:
    if name == "AsyncLLM":  # asyncio is a third of the time that importing the rest takes
        from edgerun.api.async_llm import AsyncLLM

        return AsyncLLM
    raise AttributeError(f"module 'edgerun.api' has no attribute {name!r}")
