"""What everybody did while a model worked: spans of compute threads, readers, waits, reads ahead, and a backend.

Collected while it happens with as little work as possible, made into Chrome's trace format (which Perfetto reads too:
https://ui.perfetto.dev) afterwards:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgerun.events import Span
from edgerun.kernels.launch_trace import LaunchTrace
from edgerun.models import Decoder

_MOST_SPANS = 2_000_000  # beside those of launches, which bound themselves
_STEP, _BETWEEN = "step", "between steps"
_LANES = (  # from top to bottom
    *(_STEP, _BETWEEN, "resting", "compute", "waiting", "cluster"),
    *("prefetch", "reader", "backend", "beside the backend"),
)


class Trace:
    """Spans of decoders' work, while they are watched."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._launches: list[LaunchTrace] = []
        self._dropped = 0

    @property
    def lost(self) -> int:
        """Spans that there was no room for."""
        return self._dropped + sum(each.lost for each in self._launches)

    @contextmanager
    def watch(self, decoder: Decoder) -> Iterator[None]:
        """Within, everything is noted. UsageError when the kernels are traced already."""
        recording = decoder.kernels.recording
        with contextlib.nullcontext() if recording is None else recording.trace() as launches:
            self._launches += [] if launches is None else [launches]
            decoder.watch(self.note)
            try:
                yield
            finally:
                decoder.watch(None)
                if launches is not None:
                    launches.collect()

    def note(self, span: Span) -> None:
        """From any thread."""
        if len(self._spans) < _MOST_SPANS:
            self._spans.append(span)
        else:
            self._dropped += 1

    def spans(self) -> list[Span]:
        """All of them when nobody is watched any more, in order of their begins; what lies between steps (sampling,
        text, whoever uses the model) is a lane of its own."""
        launches = [span for each in self._launches for span in each.spans()]
        steps = sorted((span for span in self._spans if span.lane == _STEP), key=lambda span: span.begin_s)
        between = [
            Span(_BETWEEN, "sampling, text and the caller", one.end_s, other.begin_s)
            for one, other in itertools.pairwise(steps)
            if other.begin_s > one.end_s
        ]
        return sorted([*self._spans, *between, *launches], key=lambda span: (span.begin_s, -span.end_s))


def lane_seconds(spans: Sequence[Span]) -> dict[str, float]:
    """Lane -> seconds in which it did something: what overlaps within a lane counts once."""
    ends: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for span in sorted(spans, key=lambda span: span.begin_s):
        begin = max(span.begin_s, ends.get(span.lane, span.begin_s))
        seconds[span.lane] = seconds.get(span.lane, 0.0) + max(0.0, span.end_s - begin)
        ends[span.lane] = max(span.end_s, ends.get(span.lane, span.end_s))
    return seconds


def operation_seconds(spans: Sequence[Span]) -> dict[str, float]:
    """Kernel -> seconds of all compute threads together."""
    seconds: dict[str, float] = {}
    for span in spans:
        if span.lane.startswith("compute"):
            name = span.name.split(",")[0]
            seconds[name] = seconds.get(name, 0.0) + span.end_s - span.begin_s
    return seconds


def chrome_trace(spans: Sequence[Span], *, lost: int = 0, about: dict[str, object] | None = None) -> bytes:
    """JSON in Chrome's trace format: a lane is a thread, times are microseconds since the first span."""
    first = min((span.begin_s for span in spans), default=0.0)
    lanes = sorted({span.lane for span in spans}, key=_place)
    events: list[dict[str, object]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "edgerun"}}]
    for number, lane in enumerate(lanes):
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": lane}})
        events.append({"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": number, "args": {"sort_index": number}})
    numbers = {lane: number for number, lane in enumerate(lanes)}
    for span in spans:
        name, _, part = span.name.partition(", ")
        event: dict[str, object] = {
            "name": name,
            "cat": span.lane.rstrip("0123456789 "),
            "pid": 1,
            "tid": numbers[span.lane],
            "ts": round(1e6 * (span.begin_s - first), 3),
        }
        arguments: dict[str, object] = {"part": part} if part else {}
        if span.n_bytes:
            arguments["bytes"] = span.n_bytes
        if arguments:
            event["args"] = arguments
        if span.end_s > span.begin_s or span.lane != "prefetch":
            event |= {"ph": "X", "dur": round(1e6 * (span.end_s - span.begin_s), 3)}
        else:
            event |= {"ph": "i", "s": "t"}
        events.append(event)
    seconds = {lane: round(busy, 6) for lane, busy in lane_seconds(spans).items()}
    other = {"lost_spans": lost, "lane_seconds": seconds, **(about or {})}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}).encode()


def _place(lane: str) -> tuple[int, str]:
    """Where a lane stands."""
    kind = next((index for index, name in enumerate(_LANES) if lane.rstrip("0123456789 ") == name), len(_LANES))
    return kind, lane
