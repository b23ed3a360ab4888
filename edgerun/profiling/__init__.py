"""Measuring: how fast a loaded model is, where its time, bytes and joules go, and what to expect elsewhere."""

from edgerun.profiling.bench import BenchRun, bench_report, run_case
from edgerun.profiling.cases import Case

__all__ = ["BenchRun", "Case", "bench_report", "run_case"]
