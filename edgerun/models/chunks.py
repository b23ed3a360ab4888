"""How a prompt is cut."""

from __future__ import annotations

CHUNK = 256  # rows that pass attention and the dense products together


def chunks(tokens: int, size: int) -> list[slice]:
    """Pieces of `size`, the last one of what is left."""
    return [slice(low, min(low + size, tokens)) for low in range(0, tokens, size)]
