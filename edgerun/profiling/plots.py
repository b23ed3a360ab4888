"""The report's charts as one picture, by matplotlib (`pip install 'edgerun[plots]'`)."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np

from edgerun.errors import UnsupportedError
from edgerun.profiling.report import Report


def draw(report: Report, form: Literal["png", "svg"] | str) -> bytes:
    """Roofline of both phases, time by layer, a token's milliseconds, bytes read and hits over time. UnsupportedError
    without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError("pictures need matplotlib: pip install 'edgerun[plots]'") from error
    figure = Figure(figsize=(12, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    machine, decode = report["machine"], report["decode"]
    bandwidth, peak = 1e9 * machine["bandwidth_gb_s"], 1e9 * machine["peak_gop_s"]
    for phase, plot in zip(("prompt", "decode"), axes[0], strict=True):
        intensities = np.logspace(-1, 4, 60)
        plot.loglog(intensities, np.minimum(intensities * bandwidth, peak), color="tab:orange")
        for each in report[phase]["operations"]:
            if each["share_of_limit"] is not None and each["seconds"] > 0:
                at = each["intensity"], each["flops"] / each["seconds"]
                plot.loglog(*at, "o", label=each["name"])
        plot.set(title=f"roofline, {phase}", xlabel="operations a byte", ylabel="operations/s")
        plot.legend(fontsize=8)
    layers = decode["layers"]
    axes[1][0].barh([name for name, _ in layers][::-1], [1e3 * s for _, s in layers][::-1])
    axes[1][0].set(title="a token's thread time by layer", xlabel="ms")
    steps = decode["steps"]
    for plot, title, values in (
        (axes[1][1], "ms of a token", [1e3 * each["seconds"] for each in steps]),
        (axes[2][0], "MB read a token", [each["read_bytes"] / 1e6 for each in steps]),
        (axes[2][1], "cache hits", [each["hit_rate"] for each in steps if each["hit_rate"] is not None]),
    ):
        plot.plot(values)
        plot.set(title=title, xlabel="token", ylim=(0, None))
    out = io.BytesIO()
    figure.savefig(out, format=form)
    return out.getvalue()
