"""Counts and rates of one reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgerun.api import Completion


def stats_dict(completion: Completion, load_s: float | None = None) -> dict[str, Any]:
    """For JSON: tokens, seconds and rates."""
    usage, timings = completion.usage, completion.timings
    return {
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.reused_tokens,
        "completion_tokens": usage.completion_tokens,
        "load_s": None if load_s is None else round(load_s, 3),
        "prompt_s": round(timings.prompt_s, 3),
        "decode_s": round(timings.decode_s, 3),
        "prompt_tok_s": round(timings.prompt_tokens_per_s, 2),
        "decode_tok_s": round(timings.decode_tokens_per_s, 2),
    }


def stats_line(completion: Completion, load_s: float | None = None) -> str:
    """For people: one line."""
    usage, timings = completion.usage, completion.timings
    reused = f", {usage.reused_tokens} reused" if usage.reused_tokens else ""
    parts = [
        f"prompt {usage.prompt_tokens} tokens{reused}: {timings.prompt_s:.2f} s, "
        f"{timings.prompt_tokens_per_s:.1f} tokens/s",
        f"reply {usage.completion_tokens} tokens: {timings.decode_s:.2f} s, {timings.decode_tokens_per_s:.1f} tokens/s",
        f"seed {completion.seed}",
    ]
    if load_s is not None:
        parts.insert(0, f"loaded in {load_s:.2f} s")
    return "; ".join(parts)


def streaming_line(streaming: Mapping[str, Any]) -> str:
    """What `weights.statistics.summary` has of a streamed model."""
    parts = [
        f"cache hits {100 * streaming['hit_rate']:.0f} %",
        f"{streaming['read_bytes_per_token'] / 1e6:.1f} MB/token",
        f"stalled {1e3 * streaming['stall_s_per_token']:.1f} ms/token",
    ]
    return "streamed: " + ", ".join(parts)
