"""How a prompt is cut: never with a rest of one token."""

from __future__ import annotations


def chunks(tokens: int, size: int) -> list[slice]:
    """Pieces of `size` (at least 2); a single token left over joins the last one.

    One token alone is computed by the kernels for decoding, whose attention sums in another order: with no such rest
    a prompt gives the same bits however it is cut.
    """
    ends = list(range(size, tokens, size))
    if ends and tokens - ends[-1] == 1:
        ends.pop()
    return [slice(low, high) for low, high in zip([0, *ends], [*ends, tokens], strict=True)]
