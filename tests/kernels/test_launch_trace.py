"""Spans of the pool's threads: every item once, within the time that the launch took, and none when nobody listens."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.formats.gguf.types import GgmlType
from edgerun.kernels import load_kernels
from edgerun.kernels.program import Program
from tests.kernels.blocks import random_blocks


def test_pieces_are_noted_while_somebody_listens():
    kernels = load_kernels("auto", threads=2, types=[GgmlType.Q4_0])
    try:
        rng = np.random.default_rng(0)
        w = kernels.pack(random_blocks(rng, 4096, 1024, GgmlType.Q4_0), GgmlType.Q4_0, 1024)
        x, out = kernels.activations(rng.standard_normal((1, 1024)).astype(np.float32)), np.empty((1, 4096), np.float32)
        kernels.matmul(w, x, out)
        wanted = out.copy()
        with kernels.recording.trace() as trace:
            began = time.perf_counter()
            for _ in range(20):
                kernels.matmul(w, x, out)
            ended = time.perf_counter()
            trace.collect()
            trace.collect()  # nothing is new
            spans = trace.spans()
            with pytest.raises(UsageError, match="traced already"), kernels.recording.trace():
                pass
        assert np.array_equal(out, wanted)
        assert {span.lane for span in spans} <= {"compute 1", "compute 2"}
        assert all(began <= span.begin_s <= span.end_s <= ended for span in spans)
        for lane in ("compute 1", "compute 2"):
            times = sorted((span.begin_s, span.end_s) for span in spans if span.lane == lane)
            assert all(one[1] <= other[0] for one, other in zip(times, times[1:], strict=False)), "one thing at a time"
        assert sum(span.name == "matmul_q4_0" for span in spans) >= 20
        kernels.matmul(w, x, out)
        trace.collect()
        assert len(trace.spans()) == len(spans), "nobody listens any more"
    finally:
        kernels.close()


def test_what_is_not_taken_is_lost_and_counted(monkeypatch):
    monkeypatch.setattr("edgerun.kernels.launch_trace._SPANS", 8)
    kernels = load_kernels("auto", threads=1)
    try:
        launcher, done = kernels._launcher, np.zeros((1, 3), np.float32)
        one = np.ones(3, np.float32)
        launch = launcher.laid_out("add", [done.ctypes.data, one.ctypes.data, 3, 0], 1, 1)
        program = Program([launch] * 20, [done, one], ["layer 0"] * 12 + ["layer 1"] * 7 + ["logits"])
        with launcher.trace() as trace:
            launcher.replay(program)
            trace.collect()
            spans = trace.spans()
        assert done[0, 0] == 20 and trace.lost == 13, "12 launches, and where they began"
        assert [span.name for span in spans] == 6 * ["add, layer 1"] + ["add, logits"], "when the first began is lost"
    finally:
        kernels.close()
