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

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("LLM", "AsyncLLM"):
        return getattr(import_module("edgerun.api"), name)
    raise AttributeError(f"module 'edgerun' has no attribute {name!r}")
