"""How fast a model is: a prompt, then given tokens one at a time, as the llama.cpp baseline feeds them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.device import page_faults, peak_bytes
from edgerun.errors import UsageError
from edgerun.events import EventSink, Progress, ignore
from edgerun.models import Decoder
from edgerun.weights.statistics import summary

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class BenchRun:
    """One repetition, in seconds: the whole prompt, and each decoded token."""

    prompt_tokens: int
    prompt_s: float
    steps_s: tuple[float, ...]
    streaming: Mapping[str, float] = field(default_factory=dict)  # of the warm steps, see `weights.statistics`

    @property
    def warm_steps_s(self) -> tuple[float, ...]:
        """The last two thirds of the steps: the first ones warm caches and threads."""
        return self.steps_s[len(self.steps_s) // 3 :]

    @property
    def prompt_tok_s(self) -> float | None:
        """Prompt tokens per second; None without a prompt."""
        return self.prompt_tokens / self.prompt_s if self.prompt_tokens else None

    @property
    def decode_tok_s(self) -> float | None:
        """Decoded tokens per second when warm; None when none were decoded."""
        return 1 / statistics.fmean(self.warm_steps_s) if self.steps_s else None


def run_bench(
    decoder: Decoder,
    ids: Sequence[int],
    prompt_tokens: int,
    *,
    repetitions: int = 1,
    limit_s: float = 300.0,
    on_logits: Callable[[F32], None] | None = None,
    events: EventSink = ignore,
) -> list[BenchRun]:
    """Feed `ids`: the first `prompt_tokens` as a prompt, the others one by one; each time from position 0.

    `on_logits` gets a copy of the logits (vocab,) f32 after every call of the decoder, in the first
    repetition. Decoding stops after `limit_s` seconds in each. UsageError when there is nothing to feed.
    """
    if not 0 <= prompt_tokens <= len(ids) or not ids:
        raise UsageError(f"nothing to measure: {len(ids)} ids, {prompt_tokens} of them as the prompt")
    runs = []
    for repetition in range(repetitions):
        events(Progress("bench", repetition, repetitions, "repetitions"))
        runs.append(_run(decoder, ids, prompt_tokens, limit_s, on_logits if repetition == 0 else None))
    events(Progress("bench", repetitions, repetitions, "repetitions"))
    return runs


def _run(
    decoder: Decoder,
    ids: Sequence[int],
    prompt_tokens: int,
    limit_s: float,
    on_logits: Callable[[F32], None] | None,
) -> BenchRun:
    cache = decoder.new_cache(len(ids))

    def feed(chunk: Sequence[int]) -> None:
        out = decoder.forward(chunk, cache, logits="last")
        if on_logits is not None and out is not None:
            on_logits(np.array(out[-1], dtype=np.float32))

    start = time.perf_counter()
    if prompt_tokens:
        feed(ids[:prompt_tokens])
    begin = time.perf_counter()
    prompt_s = begin - start
    steps: list[float] = []
    cold = (len(ids) - prompt_tokens) // 3
    counts = decoder.store.statistics()
    for token in ids[prompt_tokens:]:
        if len(steps) == cold:
            counts = decoder.store.statistics()
        before = time.perf_counter()
        feed([token])
        steps.append(time.perf_counter() - before)
        if time.perf_counter() - begin > limit_s:
            break
    streaming = summary(counts, decoder.store.statistics(), max(0, len(steps) - cold))
    return BenchRun(prompt_tokens, prompt_s, tuple(steps), streaming)


def bench_report(runs: Sequence[BenchRun], *, threads: int, load_s: float) -> dict[str, Any]:
    """The fields that the llama.cpp baseline prints (rates are means over `runs`, percentiles over all their
    warm steps), then the repetitions with their standard deviations."""
    prompt = [run.prompt_tok_s for run in runs if run.prompt_tok_s is not None]
    decode = [run.decode_tok_s for run in runs if run.decode_tok_s is not None]
    warm = [step for run in runs for step in run.warm_steps_s]
    major_faults, read_bytes = page_faults()
    return {
        "engine": "edgerun",
        "threads": threads,
        "load_s": round(load_s, 2),
        "prompt_tokens": runs[0].prompt_tokens,
        "prompt_tok_s": _mean(prompt),
        "first_token_s": _mean([run.prompt_s for run in runs]) if prompt else None,
        "decode_tokens": len(runs[0].steps_s),
        "decode_tok_s": _mean(decode),
        "decode_p50_ms": _percentile_ms(warm, 50),
        "decode_p95_ms": _percentile_ms(warm, 95),
        "max_rss_mib": peak_bytes() >> 20,
        "major_faults": major_faults,
        "read_mib": read_bytes >> 20,
        "repetitions": len(runs),
        "prompt_tok_s_sd": _deviation(prompt),
        "decode_tok_s_sd": _deviation(decode),
    } | _streaming(runs)


def _streaming(runs: Sequence[BenchRun]) -> dict[str, float]:
    """Means over the runs that have a figure: one that read nothing has no disk rate."""
    keys = dict.fromkeys(key for run in runs for key in run.streaming)
    return {key: round(statistics.fmean(run.streaming[key] for run in runs if key in run.streaming), 6) for key in keys}


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 2) if values else None


def _deviation(values: Sequence[float]) -> float | None:
    return round(statistics.stdev(values), 2) if len(values) > 1 else None


def _percentile_ms(seconds: Sequence[float], percent: int) -> float | None:
    return round(float(np.percentile(seconds, percent)) * 1e3, 1) if seconds else None
