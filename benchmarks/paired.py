"""What a text costs, token by token, and how far two ways to compute the same model are from each other.

Two perplexities apart have large errors, for a text is hard in one place and easy in another; the same tokens' costs
differ by little, and what they differ by has a small one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgerun import LLM

F64 = NDArray[np.float64]
AT_ONCE = 64  # rows of logits: a vocabulary can be wide


def nats(llm: LLM, ids: list[int], read: int) -> F64:
    """-log p of each token after the first `read`, (len(ids) - 1 - read,)."""
    decoder = llm.engine.decoder
    sequence = decoder.new_cache(len(ids))
    decoder.forward(ids[:read], sequence, logits="none")
    found = []
    for low in range(read, len(ids) - 1, AT_ONCE):
        some = ids[low : min(low + AT_ONCE, len(ids) - 1)]
        logits = decoder.forward(some, sequence, logits="all")
        assert logits is not None
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(some)), ids[low + 1 : low + 1 + len(some)]].astype(np.float64)
        found.append(np.log(np.exp(logits).sum(axis=1, dtype=np.float64)) - chosen)
    return np.concatenate(found)


def told(found: F64, plain: F64) -> str:
    """Costs (windows, tokens) beside the first way's: the perplexity, its ratio, and the standard error of the paired
    differences, token by token and window by window (which is greater where errors of one window go together)."""
    apart = found - plain
    by_token = apart.std(ddof=1) / apart.size**0.5
    windows = apart.mean(axis=1)
    by_window = windows.std(ddof=1) / len(windows) ** 0.5 if len(windows) > 1 else float("nan")
    return (
        f"perplexity {np.exp(found.mean()):.4f}, {100 * np.expm1(apart.mean()):+.3f} % "
        f"(standard error {100 * by_token:.3f} by tokens, {100 * by_window:.3f} by windows; "
        f"a token differs by {np.abs(apart).mean():.4f})"
    )
