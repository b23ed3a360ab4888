from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.profiling.bench import BenchRun, bench_report, run_bench


class Recorder:
    """A decoder that remembers what it was fed."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.capacities: list[int] = []
        self.store = self  # whose counters are these:

    def statistics(self) -> dict[str, float]:
        fed = sum(map(len, self.calls))
        return {"hits": 3.0 * fed, "late": 0.0, "misses": fed, "predicted": 0, "read_n_bytes": 10.0 * fed, "stall_s": 0}

    def new_cache(self, capacity: int) -> Any:
        self.capacities.append(capacity)
        return object()

    def forward(self, ids: Sequence[int], cache: Any, *, logits: str = "last") -> Any:
        self.calls.append(list(ids))
        return np.full((1, 4), ids[-1], np.float32)


def test_feeds_the_prompt_at_once_and_then_one_at_a_time() -> None:
    decoder, seen = Recorder(), []
    runs = run_bench(decoder, range(603), 600, repetitions=2, on_logits=lambda row: seen.append(row[0]))
    assert decoder.calls == 2 * [list(range(600)), [600], [601], [602]]
    assert decoder.capacities == [603, 603]
    assert seen == [599, 600, 601, 602]
    assert [len(run.steps_s) for run in runs] == [3, 3]
    report = bench_report(runs, threads=1, load_s=0)
    assert (report["hit_rate"], report["read_bytes_per_token"]) == (0.75, 10.0)


def test_stops_after_the_limit() -> None:
    [run] = run_bench(Recorder(), range(100), 0, limit_s=-1)
    assert len(run.steps_s) == 1
    assert run.prompt_tok_s is None


@pytest.mark.parametrize(("ids", "prompt"), [([], 0), ([1], 2), ([1], -1)])
def test_nothing_to_measure(ids: list[int], prompt: int) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        run_bench(Recorder(), ids, prompt)


def test_report_counts_the_last_two_thirds() -> None:
    runs = [BenchRun(10, 2.0, (9.0, 0.1, 0.1)), BenchRun(10, 1.0, (9.0, 0.2, 0.2))]
    report = bench_report(runs, threads=2, load_s=1.234)
    assert report["prompt_tok_s"] == 7.5 and report["prompt_tok_s_sd"] == 3.54
    assert report["decode_tok_s"] == 7.5 and report["decode_tok_s_sd"] == 3.54
    assert (report["first_token_s"], report["load_s"], report["decode_tokens"]) == (1.5, 1.23, 3)
    assert (report["decode_p50_ms"], report["decode_p95_ms"]) == (150.0, 200.0)


def test_report_of_one_run_without_prompt_or_decode() -> None:
    report = bench_report([BenchRun(0, 0.0, (0.5,))], threads=1, load_s=0)
    assert report["prompt_tok_s"] is None and report["first_token_s"] is None
    assert report["decode_tok_s"] == 2.0 and report["decode_tok_s_sd"] is None
    report = bench_report([BenchRun(4, 2.0, ())], threads=1, load_s=0)
    assert report["decode_tok_s"] is None and report["decode_p50_ms"] is None and report["prompt_tok_s"] == 2.0


def test_report_of_runs_of_which_one_read_nothing() -> None:
    reading = BenchRun(1, 1.0, (0.5,), {"hit_rate": 0.5, "disk_bytes_per_s": 1e9, "prediction_precision": 1.0})
    idle = BenchRun(1, 1.0, (0.5,), {"hit_rate": 1.0})
    for runs in ([reading, idle], [idle, reading]):
        report = bench_report(runs, threads=1, load_s=0)
        assert (report["hit_rate"], report["disk_bytes_per_s"], report["prediction_precision"]) == (0.75, 1e9, 1.0)
