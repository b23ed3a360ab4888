"""The report's charts in a terminal, by plotext (`pip install 'edgerun[plots]'`)."""

from __future__ import annotations

import math

from edgerun.errors import UnsupportedError
from edgerun.profiling.report import Report

_HEIGHT = 14


def terminal_charts(report: Report, width: int = 90) -> str:
    """Both rooflines, a token's milliseconds, and where weights are streamed what it read and found. UnsupportedError
    without plotext."""
    try:
        import plotext
    except ImportError as error:
        raise UnsupportedError("charts in a terminal need plotext: pip install 'edgerun[plots]'") from error
    machine, steps = report["machine"], report["decode"]["steps"]
    bandwidth, peak = 1e9 * machine["bandwidth_gb_s"], 1e9 * machine["peak_gop_s"]
    charts: list[str] = []

    def chart(title: str, draw: object) -> None:
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plotsize(width, _HEIGHT)
        plotext.title(title)
        if callable(draw):
            draw()
        charts.append(str(plotext.build()))

    def roof(phase: str) -> None:
        exponents = [step / 10 for step in range(-5, 31)]
        plotext.plot(exponents, [math.log10(min(10**each * bandwidth, peak)) for each in exponents])
        for each in report[phase]["operations"]:
            if each["share_of_limit"] is not None and each["seconds"] > 0:
                place = [math.log10(each["intensity"])], [math.log10(each["flops"] / each["seconds"])]
                plotext.scatter(*place, label=each["name"])

    for phase in ("prompt", "decode"):
        chart(
            f"roofline, {phase}: log10 of operations/s by log10 of operations a byte", lambda phase=phase: roof(phase)
        )
    chart("ms of a token", lambda: plotext.plot([1e3 * each["seconds"] for each in steps]))
    if any(each["read_bytes"] for each in steps):
        chart("MB read a token", lambda: plotext.plot([each["read_bytes"] / 1e6 for each in steps]))
        hits = [each["hit_rate"] for each in steps if each["hit_rate"] is not None]
        chart("cache hits", lambda: plotext.plot(hits))
    return "\n\n".join(charts)
