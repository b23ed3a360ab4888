"""Spans of readers and lanes: who did what, and what it adds up to."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny_model

from edgerun import LLM
from edgerun.events import Span
from edgerun.profiling.trace import Trace, chrome_trace, lane_seconds, operation_seconds
from edgerun.weights.flash import DEMAND, PREDICTED, FlashReader, Piece, Reading


def test_readers_tell_what_they_read_and_who_waits(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(bytes(64 * 4096))
    spans: list[Span] = []
    reader = FlashReader([path], threads=2)
    try:
        reader.watch(spans.append)
        for priority in (DEMAND, PREDICTED):
            reading = Reading(reader)
            pieces = [Piece(0, 4096 * i, 4096, f"piece {i}", lambda view: None, reading.landed) for i in range(16)]
            reading.begin(pieces, priority)
            reading.wait()
        reader.watch(None)
        before = len(spans)
        reading = Reading(reader)
        reading.begin([Piece(0, 0, 4096, "unseen", lambda view: None, reading.landed)], DEMAND)
        reading.wait()
        assert len(spans) == before
    finally:
        reader.close()
    reads = [span for span in spans if span.lane.startswith("reader ")]
    assert sorted(span.name for span in reads) == sorted(2 * [f"piece {i}" for i in range(16)])
    assert all(span.n_bytes == 4096 and span.end_s >= span.begin_s for span in reads)
    assert {span.lane for span in reads} <= {"reader 1", "reader 2"}
    assert sum(span.lane == "prefetch" for span in spans) == 16 and any(span.lane == "waiting" for span in spans)


def test_lanes_count_what_overlaps_once() -> None:
    spans = [
        Span("a", "x", 0, 2),
        Span("a", "y", 1, 3),
        Span("a", "z", 5, 6),
        Span("compute 1", "matmul, layer 0", 0, 1),
    ]
    assert lane_seconds(spans) == {"a": 4, "compute 1": 1} and operation_seconds(spans) == {"matmul": 1}
    trace = json.loads(chrome_trace([*spans, Span("prefetch", "p", 4, 4, 10)], lost=3, about={"model": "m"}))
    assert trace["otherData"]["lost_spans"] == 3 and trace["otherData"]["model"] == "m"
    events = [event for event in trace["traceEvents"] if event["ph"] != "M"]
    assert [event["ts"] for event in events] == [0, 1e6, 5e6, 0, 4e6]
    assert events[3]["args"] == {"part": "layer 0"} and events[4]["ph"] == "i" and events[4]["args"] == {"bytes": 10}
    assert json.loads(chrome_trace([]))["traceEvents"]


def test_nothing_is_lost_between_two_looks(tmp_path: Path) -> None:
    with LLM(make_tiny_model(tmp_path / "tiny.gguf"), threads=2) as llm:
        decoder, trace = llm.engine.decoder, Trace()
        cache = decoder.new_cache(300)
        decoder.forward([1], cache)
        with trace.watch(decoder):
            for token in range(200):
                decoder.forward([token], cache)
        decoder.forward([1], cache)
        spans = trace.spans()
        assert trace.lost == 0 and sum(span.lane == "step" for span in spans) == 200
        first, last = (min(s.begin_s for s in spans), max(s.end_s for s in spans))
        inside = [span for span in spans if span.lane.startswith("compute")]
        assert all(first <= span.begin_s <= span.end_s <= last for span in inside)
        by_layer = [sum(f"layer {layer}" in span.name for span in inside) for layer in range(2)]
        assert by_layer[0] >= 200 and abs(by_layer[0] - by_layer[1]) < 0.2 * by_layer[0]
        for thread in ("compute 1", "compute 2"):
            launches = sorted((s for s in inside if s.lane == thread), key=lambda span: span.begin_s)
            assert all(one.end_s <= other.begin_s for one, other in itertools.pairwise(launches)), "none within another"
        seconds, steps = lane_seconds(spans), [span for span in spans if span.lane == "step"]
        wall = steps[-1].end_s - steps[0].begin_s
        assert seconds["step"] + seconds["between steps"] == pytest.approx(wall, rel=0.03)
        assert np.isfinite([span.end_s for span in spans]).all()
