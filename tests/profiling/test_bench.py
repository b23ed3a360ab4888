from __future__ import annotations

import contextlib
import csv
import io
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgerun.errors import UsageError
from edgerun.profiling import BenchRun, Case, bench_report, run_case
from edgerun.profiling.cases import make_cases, numbers, pair
from edgerun.profiling.energy import Energy, EnergyMeter
from edgerun.profiling.energy.sampled import PowerSampler
from edgerun.profiling.figures import ratio
from edgerun.profiling.noise import Noise, NoiseMeter
from edgerun.profiling.rows import About, render, row
from edgerun.profiling.session import Measured, ratios, run_session


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
    run = run_case(decoder, Case(600, 3), range(603), on_logits=lambda row: seen.append(row[0]))
    assert decoder.calls == [list(range(600)), [600], [601], [602]]
    assert decoder.capacities == [603]
    assert seen == [599, 600, 601, 602]
    assert len(run.steps_s) == 3
    report = bench_report([run, run], threads=1, load_s=0)
    assert (report["hit_rate"], report["read_bytes_per_token"]) == (0.75, 10.0)


def test_stops_after_the_limit() -> None:
    run = run_case(Recorder(), Case(0, 100), range(100), limit_s=-1)
    assert len(run.steps_s) == 1
    assert run.prompt_tok_s is None


@pytest.mark.parametrize(("ids", "prompt"), [([], 0), ([1], 2)])
def test_nothing_to_measure(ids: list[int], prompt: int) -> None:
    with pytest.raises(UsageError, match="nothing to measure"):
        run_case(Recorder(), Case(prompt, 0), ids)


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


def test_depth_and_batches() -> None:
    decoder = Recorder()
    run = run_case(decoder, Case(5, 2, depth=3, batch=2), range(10))
    assert decoder.calls == [[0, 1, 2], [3, 4], [5, 6], [7], [8], [9]]
    assert run.prompt_tokens == 5 and len(run.steps_s) == 2 and run.tok_s == 7 / (run.prompt_s + sum(run.steps_s))


def test_joules_of_both_phases() -> None:
    source = PowerSampler("synthetic", lambda: {"all": 50.0}, interval_s=0)
    run = run_case(Recorder(), Case(5, 2), range(7), meter=EnergyMeter(source))
    for energy in (run.prompt_energy, run.decode_energy):
        assert energy is not None and energy.gross_j == pytest.approx(50 * energy.seconds, rel=0.01)
    silent = run_case(Recorder(), Case(5, 0), range(5), meter=EnergyMeter(None, "no meter here"))
    assert silent.prompt_energy is not None and silent.prompt_energy.gross_j is None and silent.decode_energy is None
    assert silent.prompt_tok_s is not None, "time is measured all the same"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("512", [512]),
        ("0,128, 128,512", [0, 128, 512]),
        ("1-4", [1, 2, 3, 4]),
        ("0-1024+512", [0, 512, 1024]),
        ("128-1024*2", [128, 256, 512, 1024]),
        ("1,4-6", [1, 4, 5, 6]),
    ],
)
def test_lists_of_numbers(text: str, found: list[int]) -> None:
    assert numbers("-p", text) == found


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "4-1", "1-9+0", "0-8*2", "2-8*1", "1.5", "1-1000", "9999999", "1" * 30, "1--2", "1,"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="-p "):
        numbers("-p", text)


def test_cases_as_llama_bench_has_them() -> None:
    cases = make_cases([512, 0], [128], [(64, 32)], [0, 256], [])
    names = ["pp512", "tg128", "pp64+tg32"]
    assert [case.name for case in cases] == names + [f"{name} @ d256" for name in names]
    assert pair("-pg", "64, 32") == (64, 32)
    for text in ("64", "1,2,3", "a,b", "1,99999999"):
        with pytest.raises(UsageError, match="-pg"):
            pair("-pg", text)
    with pytest.raises(UsageError, match="nothing to measure"):
        make_cases([0], [0], [], [0], [0])


def test_ratio_of_pairs_ignores_what_slows_both() -> None:
    slowness = [1.0, 0.5, 0.7, 0.9]
    found = ratio([30 * each for each in slowness], [10 * each for each in slowness])
    assert found is not None and found.value == pytest.approx(3) and found.low == pytest.approx(3)
    found = ratio([2.0, 2.2, 1.8], [1.0, 1.0, 1.0])
    assert (
        found is not None and found.low is not None and found.high is not None and found.low < found.value < found.high
    )
    assert "95 %" in str(found)
    one = ratio([2.0], [1.0])
    assert one is not None and one.low is None and str(one) == "2.00" and ratio([], []) is None


def test_noise_is_seen() -> None:
    assert not Noise(0.05, 0.01, 1.0, 2).is_noisy and not Noise(0.0, None, None, 2).is_noisy
    assert Noise(0.5, 0.01, 1.0, 2).is_noisy and Noise(0.0, 0.2, 1.0, 2).is_noisy
    seen = NoiseMeter().end([10.0, 10.0, 13.0])
    assert seen.is_noisy and "repetitions differ by 15.7 %" in str(seen) and 0 <= seen.others_share <= 1


def test_rows_in_every_form() -> None:
    runs = (BenchRun(10, 2.0, ()), BenchRun(10, 1.0, ()))
    about = About("m.gguf", "it's Q4_0", 1 << 20, 1_000_000, "a processor", "edgerun 1", "2026-01-01T00:00:00Z")
    spent = Energy(3.0, None, 2.0, "estimate: 15 W", is_estimate=True)
    with_joules = tuple(replace(run, prompt_energy=spent) for run in runs)
    measured = [
        Measured("edgerun", "avx2", 2, Case(10, 0), with_joules, Noise(0.0, 0.01, 0.5, 2)),
        Measured("llamacpp", "llama-cpp-python 1", 2, Case(10, 0), runs, Noise(0.9, 0.4, 3.0, 2)),
    ]
    rows = [row(about, each, {"ram_peak": 7}) for each in measured]
    parsed = json.loads(render("json", rows))
    assert parsed == [json.loads(line) for line in render("jsonl", rows).splitlines()]
    assert parsed[0]["avg_ts"] == 7.5 and parsed[0]["stddev_ns"] == 707106781 and parsed[0]["samples_ts"] == [5, 10]
    assert parsed[0]["prompt_j_per_token"] == 0.3 and parsed[0]["prompt_energy_method"] == "estimate: 15 W"
    table = list(csv.DictReader(io.StringIO(render("csv", rows))))
    assert [each["engine"] for each in table] == ["edgerun", "llamacpp"] and table[0]["model_type"] == "it's Q4_0"
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(render("sql", rows))
        assert database.execute("SELECT model_type, avg_ts, noisy, memory_ram_peak_bytes FROM test").fetchall() == [
            ("it's Q4_0", 7.5, 0, 7),
            ("it's Q4_0", 7.5, 1, 7),
        ]
    lines = render("md", rows).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "(noisy)" in lines[3] and "(noisy)" not in lines[2] and "0.300 (estimate)" in lines[2]


def test_engines_take_turns() -> None:
    order: list[str] = []

    class Fake:
        backend, threads, is_elsewhere = "none", 1, True

        def __init__(self, name: str, rate: float) -> None:
            self.name, self._rate = name, rate

        def run(self, case: Case) -> BenchRun:
            order.append(self.name)
            return BenchRun(case.prompt, case.prompt / self._rate, ())

        def close(self) -> None:
            raise AssertionError("who opened it closes it")

    found = run_session([Fake("a", 20.0), Fake("b", 10.0)], [Case(8, 0)], repetitions=3)
    assert order == ["a", "b", *"abbaab"], "both warm up, then the order alternates"
    ((case, one, other, value),) = ratios(found)
    assert (case.name, one, other, value.value) == ("pp8", "a", "b", pytest.approx(2))


def test_what_others_disturbed_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = iter([0.5, 0.0, 0.0, 0.02, *([0.9] * 6)])

    class Seen:
        def __init__(self) -> None:
            self.others_share = next(shares)

    class Fake:
        name, backend, threads, is_elsewhere = "a", "none", 1, False

        def run(self, case: Case) -> BenchRun:
            return BenchRun(case.prompt, 1.0, ())

        def close(self) -> None:
            raise AssertionError("who opened it closes it")

    monkeypatch.setattr("edgerun.profiling.session.NoiseMeter", Seen)
    looks: list[int] = []
    calm, busy = run_session([Fake()], [Case(8, 0), Case(9, 0)], repetitions=3, between=lambda: looks.append(1))
    assert calm.rounds == (1, 2, 3) and len(calm.runs) == 3 and not calm.noise.is_noisy
    assert len(busy.runs) == 6 and busy.noise.is_noisy, "no end of repeating: it is no result"
    assert len(looks) == 5 + 7, "before the first round and after each"
