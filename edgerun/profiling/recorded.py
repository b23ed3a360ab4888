"""One request, watched: every token's time, reads and hits, and every kernel's seconds, prompt and decode apart."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from edgerun.events import Span
from edgerun.models import Decoder
from edgerun.profiling.trace import Trace, lane_seconds, operation_seconds


@dataclass(frozen=True)
class Step:
    """One decoded token. hit_rate: of its experts or layers, None where nothing streams."""

    seconds: float
    read_bytes: float
    stall_s: float
    hit_rate: float | None


@dataclass(frozen=True)
class Recorded:
    """kernels: thread-seconds by kernel, of the prompt and of the decoded tokens; lanes: seconds of each lane; layers:
    thread-seconds of decoding by layer."""

    prompt_s: float
    steps: tuple[Step, ...]
    prompt_kernels_s: dict[str, float]
    decode_kernels_s: dict[str, float]
    prompt_lanes_s: dict[str, float]
    decode_lanes_s: dict[str, float]
    layers_s: dict[str, float]
    lost: int


def record_request(decoder: Decoder, ids: Sequence[int], prompt_tokens: int) -> tuple[Recorded, Trace]:
    """Feed `ids`, the first `prompt_tokens` as a prompt, the others one by one, with a trace of all of it."""
    trace = Trace()
    steps = []
    cache = decoder.new_cache(len(ids))
    with trace.watch(decoder):
        asked = time.perf_counter()
        decoder.forward(ids[:prompt_tokens], cache)
        ended = time.perf_counter()
        before = decoder.store.statistics()
        for token in ids[prompt_tokens:]:
            began = time.perf_counter()
            decoder.forward([token], cache)
            seconds = time.perf_counter() - began
            now = decoder.store.statistics()
            steps.append(_step(seconds, before, now))
            before = now
    spans = trace.spans()
    first, rest = _split(spans, ended)
    return (
        Recorded(
            ended - asked,
            tuple(steps),
            operation_seconds(first),
            operation_seconds(rest),
            lane_seconds(first),
            lane_seconds(rest),
            _by_layer(rest),
            trace.lost,
        ),
        trace,
    )


def _split(spans: Sequence[Span], at_s: float) -> tuple[list[Span], list[Span]]:
    return [span for span in spans if span.begin_s < at_s], [span for span in spans if span.begin_s >= at_s]


def _by_layer(spans: Sequence[Span]) -> dict[str, float]:
    found: dict[str, float] = {}
    for span in spans:
        _, _, section = span.name.partition(", ")
        if section and span.lane.startswith("compute"):
            found[section] = found.get(section, 0.0) + span.end_s - span.begin_s
    return found


def _step(seconds: float, before: dict[str, float], now: dict[str, float]) -> Step:
    change = {key: now[key] - before.get(key, 0.0) for key in now}
    hits = change.get("hits", change.get("ready", 0.0))
    uses = hits + change.get("late", 0.0) + change.get("misses", change.get("waited", 0.0))
    stall = change.get("stall_s", 0.0) + change.get("neuron_stall_s", 0.0)
    return Step(seconds, change.get("read_n_bytes", 0.0), stall, hits / uses if uses else None)
