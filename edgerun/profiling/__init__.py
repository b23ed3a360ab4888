"""Measuring: how fast a loaded model is."""

from edgerun.profiling.bench import BenchRun, bench_report, run_bench

__all__ = ["BenchRun", "bench_report", "run_bench"]
