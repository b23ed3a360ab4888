"""edgerun: language models bigger than your memory, on the devices you already own.

    from edgerun import LLM

    with LLM("model.gguf") as llm:
        print(llm.complete("Once upon a time").text)

Heavy modules load at first use, so that `import edgerun` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.api import LLM as LLM
    from edgerun.api import AsyncLLM as AsyncLLM
    from edgerun.api import CancelToken as CancelToken
    from edgerun.api import Chunk as Chunk
    from edgerun.api import Completion as Completion
    from edgerun.api import SamplingParams as SamplingParams
    from edgerun.api import Session as Session
    from edgerun.errors import Cancelled as Cancelled
    from edgerun.errors import ContextLengthError as ContextLengthError
    from edgerun.errors import DoesNotFitError as DoesNotFitError
    from edgerun.errors import EdgerunError as EdgerunError
    from edgerun.errors import FormatError as FormatError
    from edgerun.errors import NetworkError as NetworkError
    from edgerun.errors import NotFoundError as NotFoundError
    from edgerun.errors import TemplateError as TemplateError
    from edgerun.errors import UnsupportedError as UnsupportedError
    from edgerun.errors import UsageError as UsageError

__version__ = "0.1.0"

_API = ("LLM", "AsyncLLM", "CancelToken", "Chunk", "Completion", "SamplingParams", "Session")
_ERRORS = (
    "Cancelled",
    "ContextLengthError",
    "DoesNotFitError",
    "EdgerunError",
    "FormatError",
    "NetworkError",
    "NotFoundError",
    "TemplateError",
    "UnsupportedError",
    "UsageError",
)
__all__ = [*_API, *_ERRORS, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(import_module("edgerun.api"), name)
    if name in _ERRORS:
        return getattr(import_module("edgerun.errors"), name)
    raise AttributeError(f"module 'edgerun' has no attribute {name!r}")
