"""Counts and rates of one reply."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from edgerun.device import peak_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgerun.api import LLM, Completion


class ReplyMeter:
    """Watches one reply: `arrived` is called with every piece of it."""

    def __init__(self, llm: LLM) -> None:
        self._store = llm.engine.decoder.store
        self._throttle = llm.engine.decoder.throttle
        self._before = self._store.statistics()
        self._times: list[float] = []

    def arrived(self) -> None:
        """A piece of the reply is here."""
        self._times.append(time.perf_counter())

    def measures(self, completion: Completion) -> dict[str, Any]:
        """Latencies of tokens, peak memory, what power is kept to, and what `weights.statistics.summary` has of a
        streamed model."""
        from edgerun.weights.statistics import summary

        usage = completion.usage
        tokens = usage.prompt_tokens - usage.reused_tokens + usage.completion_tokens
        out: dict[str, Any] = {}
        gaps = sorted(1e3 * (b - a) for a, b in zip(self._times, self._times[1:], strict=False))
        if gaps:
            out["token_p50_ms"] = round(statistics.median(gaps), 2)
            out["token_p95_ms"] = round(gaps[int(0.95 * (len(gaps) - 1))], 2)
        peak = peak_bytes()
        if peak:
            out["peak_mib"] = peak >> 20
        if self._throttle is not None:
            out["power"] = self._throttle.describe()
        return out | summary(self._before, self._store.statistics(), tokens)


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
        "drafted_tokens": timings.drafted_tokens,
        "accepted_tokens": timings.accepted_tokens,
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
    if timings.drafted_tokens:
        parts.insert(2, f"guessed {timings.drafted_tokens} tokens, {timings.accepted_tokens} of them right")
    if load_s is not None:
        parts.insert(0, f"loaded in {load_s:.2f} s")
    return "; ".join(parts)


def measures_line(measures: Mapping[str, Any]) -> str:
    """What `ReplyMeter.measures` has, for people: one line, or two for a streamed model."""
    parts = []
    if "token_p50_ms" in measures:
        parts.append(f"a token takes {measures['token_p50_ms']:.0f} ms (p95 {measures['token_p95_ms']:.0f})")
    if "peak_mib" in measures:
        parts.append(f"peak memory {measures['peak_mib']} MiB")
    lines = ["; ".join(parts)] if parts else []
    lines += [str(measures["power"])] if "power" in measures else []
    if "hit_rate" in measures:
        lines.append(streaming_line(measures))
    return "\n".join(lines)


def streaming_line(streaming: Mapping[str, Any]) -> str:
    """What `weights.statistics.summary` has of a streamed model."""
    neurons = [f"neurons {100 * streaming['neuron_hit_rate']:.0f} %"] if "neuron_hit_rate" in streaming else []
    parts = [
        f"cache hits {100 * streaming['hit_rate']:.0f} %",
        *neurons,
        f"{streaming['read_bytes_per_token'] / 1e6:.1f} MB/token",
        f"stalled {1e3 * streaming['stall_s_per_token']:.1f} ms/token",
    ]
    return "streamed: " + ", ".join(parts)
