"""What this process will hold before any weight is loaded: known before it loads its libraries and kernels, so that
the memory which a model is said to need is what it then gets by with.

The numbers were measured on Linux and are upper bounds for a process that does nothing else; a process that holds more
already counts as it is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from edgerun.device import process_memory
from edgerun.formats.gguf.metadata import Metadata
from edgerun.text import text_bytes, vocabulary_bytes

LIBRARIES_BYTES = 100 << 20  # of a process with all libraries and kernels loaded
_LIBRARY_BYTES = {"llvmlite": 40 << 20, "tokenizers": 4 << 20}  # whose code is large, once imported
_KERNELS_BYTES = 8 << 20  # compiled ones, and their threads
_COMPILER_BYTES = 144 << 20  # Numba and LLVM at work: they stay


@dataclass(frozen=True)
class ProcessState:
    """What a process holds, the part of it that no file backs, and what large libraries will add that are to come."""

    resident_bytes: int
    private_bytes: int
    missing_libraries_bytes: int


def process_state() -> ProcessState:
    """Of this process, now."""
    memory = process_memory()
    missing = sum(n_bytes for name, n_bytes in _LIBRARY_BYTES.items() if name not in sys.modules)
    return ProcessState(memory.resident_bytes, memory.private_bytes, missing)


def loaded_bytes(state: ProcessState, metadata: Metadata, *, compiles: bool) -> int:
    """Once everything but weights is loaded. compiles: whether kernels are missing that must be compiled first."""
    libraries = max(LIBRARIES_BYTES, state.resident_bytes + state.missing_libraries_bytes + _KERNELS_BYTES)
    return libraries + vocabulary_bytes(metadata).loaded + (_COMPILER_BYTES if compiles else 0)


def elsewhere_bytes(metadata: Metadata) -> int:
    """Of a process on another device, once everything but weights is loaded, and what its text takes besides."""
    return LIBRARIES_BYTES + vocabulary_bytes(metadata).loaded + text_bytes(metadata)
