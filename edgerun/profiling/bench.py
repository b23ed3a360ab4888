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
from edgerun.models import Decoder
from edgerun.profiling.cases import Case
from edgerun.profiling.energy import Energy, EnergyMeter
from edgerun.profiling.figures import deviation, mean, percentile
from edgerun.weights.statistics import summary

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class BenchRun:
    """One repetition, in seconds: the whole prompt, and each decoded token. Energy: of both, where somebody asked."""

    prompt_tokens: int
    prompt_s: float
    steps_s: tuple[float, ...]
    streaming: Mapping[str, float] = field(default_factory=dict)  # of the warm steps, see `weights.statistics`
    prompt_energy: Energy | None = None
    decode_energy: Energy | None = None

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

    @property
    def tok_s(self) -> float:
        """Of a prompt or of decoding where there is one of both, else of all tokens together."""
        if self.prompt_tokens and self.steps_s:
            return (self.prompt_tokens + len(self.steps_s)) / (self.prompt_s + sum(self.steps_s))
        return self.prompt_tok_s or self.decode_tok_s or 0.0


def run_case(
    decoder: Decoder,
    case: Case,
    ids: Sequence[int],
    *,
    limit_s: float = 300.0,
    on_logits: Callable[[F32], None] | None = None,
    meter: EnergyMeter | None = None,
) -> BenchRun:
    """Feed `ids` from position 0: of a case its depth, its prompt, and the others one by one.

    `on_logits` gets a copy of the logits (vocab,) f32 after every measured call of the decoder. Decoding stops after
    `limit_s` seconds. meter: counts the joules of the prompt and of decoding. UsageError when there is nothing to feed.
    """
    if not ids or len(ids) < case.depth + case.prompt:
        raise UsageError(f"nothing to measure: {len(ids)} ids, {case.depth + case.prompt} of them as the prompt")
    cache = decoder.new_cache(len(ids))

    def feed(chunk: Sequence[int]) -> None:
        out = decoder.forward(chunk, cache, logits="last")
        if on_logits is not None and out is not None:
            on_logits(np.array(out[-1], dtype=np.float32))

    if case.depth:
        decoder.forward(ids[: case.depth], cache, logits="none")
    first = case.depth + case.prompt
    batch = case.batch or case.prompt or 1
    window = meter.begin() if meter is not None else None
    start = time.perf_counter()
    for low in range(case.depth, first, batch):
        feed(ids[low : min(low + batch, first)])
    begin = time.perf_counter()
    prompt_energy = window.end() if window is not None and case.prompt else None
    steps: list[float] = []
    cold = (len(ids) - first) // 3
    counts = decoder.store.statistics()
    window = meter.begin() if meter is not None else None
    for token in ids[first:]:
        if len(steps) == cold:
            counts = decoder.store.statistics()
        before = time.perf_counter()
        feed([token])
        steps.append(time.perf_counter() - before)
        if time.perf_counter() - begin > limit_s:
            break
    decode_energy = window.end() if window is not None and steps else None
    streaming = summary(counts, decoder.store.statistics(), max(0, len(steps) - cold))
    return BenchRun(case.prompt, begin - start, tuple(steps), streaming, prompt_energy, decode_energy)


def bench_report(runs: Sequence[BenchRun], *, threads: int, load_s: float) -> dict[str, Any]:
    """The fields that the llama.cpp baseline prints (rates are means over `runs`, percentiles over all their
    warm steps), then the repetitions with their standard deviations."""
    prompt = [run.prompt_tok_s for run in runs if run.prompt_tok_s is not None]
    decode = [run.decode_tok_s for run in runs if run.decode_tok_s is not None]
    major_faults, read_bytes = page_faults()
    latencies = latencies_ms(runs)
    return {
        "engine": "edgerun",
        "threads": threads,
        "load_s": round(load_s, 2),
        "prompt_tokens": runs[0].prompt_tokens,
        "prompt_tok_s": _rounded(mean(prompt)),
        "first_token_s": _rounded(mean([run.prompt_s for run in runs])) if prompt else None,
        "decode_tokens": len(runs[0].steps_s),
        "decode_tok_s": _rounded(mean(decode)),
        "decode_p50_ms": latencies["decode_p50_ms"],
        "decode_p95_ms": latencies["decode_p95_ms"],
        "max_rss_mib": peak_bytes() >> 20,
        "major_faults": major_faults,
        "read_mib": read_bytes >> 20,
        "repetitions": len(runs),
        "prompt_tok_s_sd": _rounded(deviation(prompt)),
        "decode_tok_s_sd": _rounded(deviation(decode)),
        **{name: each for name, each in latencies.items() if name not in ("decode_p50_ms", "decode_p95_ms")},
    } | streaming_figures(runs)


def latencies_ms(runs: Sequence[BenchRun]) -> dict[str, float | None]:
    """Time to the first token (over the runs) and of a token when warm (over all of them), p50, p95 and p99."""
    first = [run.prompt_s for run in runs if run.prompt_tokens]
    warm = [step for run in runs for step in run.warm_steps_s]
    out = {f"decode_p{percent}_ms": _rounded_ms(percentile(warm, percent)) for percent in (50, 95, 99)}
    return out | {f"ttft_p{percent}_ms": _rounded_ms(percentile(first, percent)) for percent in (50, 95, 99)}


def streaming_figures(runs: Sequence[BenchRun]) -> dict[str, float]:
    """Means over the runs that have a figure: one that read nothing has no disk rate."""
    keys = dict.fromkeys(key for run in runs for key in run.streaming)
    return {key: round(statistics.fmean(run.streaming[key] for run in runs if key in run.streaming), 6) for key in keys}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _rounded_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)
