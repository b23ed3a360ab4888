"""Generation: sessions over one decoder, sampling, stopping."""

from edgerun.engine.arguments import Messages, Prompt
from edgerun.engine.cancel import CancelSignal, CancelToken
from edgerun.engine.engine import Engine
from edgerun.engine.generate import generate
from edgerun.engine.params import LogitsProcessor, SamplingOptions, SamplingParams
from edgerun.engine.parts import Message
from edgerun.engine.results import (
    CallDelta,
    Chunk,
    Completion,
    FinishReason,
    Score,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from edgerun.engine.session import Session, last_completion, merge
from edgerun.engine.turns import PlainPrompt, Turns

__all__ = [
    "CallDelta",
    "CancelSignal",
    "CancelToken",
    "Chunk",
    "Completion",
    "Engine",
    "FinishReason",
    "LogitsProcessor",
    "Message",
    "Messages",
    "PlainPrompt",
    "Prompt",
    "SamplingOptions",
    "SamplingParams",
    "Score",
    "Session",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "Turns",
    "Usage",
    "generate",
    "last_completion",
    "merge",
]
