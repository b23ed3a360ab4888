"""Files of traces: what everybody did while a model worked, for Perfetto and chrome://tracing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from edgerun.cli.output import check_target, note, write_result

if TYPE_CHECKING:
    from edgerun.api import LLM
    from edgerun.profiling.trace import Trace


class TraceFile:
    """A trace that is written when all is over. path None: nothing is traced or written."""

    def __init__(self, path: Path | None, *, overwrite: bool) -> None:
        """UsageError for a file that is there and is no trace, unless `overwrite`."""
        self._path = path
        self._trace: Trace | None = None
        if path is not None:
            from edgerun.profiling.trace import Trace

            check_target(path, is_trace, overwrite=overwrite)
            self._trace = Trace()

    def watch(self, llm: LLM) -> AbstractContextManager[None]:
        """Within, what the model does is noted. UsageError when it is traced already."""
        return nullcontext() if self._trace is None else self._trace.watch(llm.engine.decoder)

    def write(self) -> None:
        """And say on stderr what the lanes add up to."""
        if self._path is not None and self._trace is not None:
            write_trace(self._path, self._trace)


@contextmanager
def traced(llm: LLM, path: Path | None, *, overwrite: bool = False) -> Iterator[None]:
    """Write what is done within to `path`, whatever ends it."""
    file = TraceFile(path, overwrite=overwrite)
    try:
        with file.watch(llm):
            yield
    finally:
        file.write()


def write_trace(path: Path, trace: Trace) -> None:
    """And say on stderr what its lanes add up to."""
    from edgerun.profiling.trace import chrome_trace, lane_seconds

    spans = trace.spans()
    write_result(path, chrome_trace(spans, lost=trace.lost))
    seconds = lane_seconds(spans)
    wall = max((span.end_s for span in spans), default=0.0) - min((span.begin_s for span in spans), default=0.0)
    shares = ", ".join(f"{lane} {100 * busy / max(wall, 1e-9):.0f} %" for lane, busy in seconds.items())
    lost = f", {trace.lost} lost" if trace.lost else ""
    note(f"{path}: {len(spans)} spans{lost}; of {wall:.2f} s: {shares}")


def is_trace(path: Path) -> bool:
    """Whether a file holds what --trace writes."""
    with path.open("rb") as file:
        return file.read(15) == b'{"traceEvents":'
