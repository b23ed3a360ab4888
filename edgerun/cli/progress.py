"""Progress on stderr, from the library's events. On a terminal a bar, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from edgerun.cli.output import note, printable
from edgerun.events import DevicesChosen, Event, Notice, Progress, ShareOpened
from edgerun.units import format_size

_PATIENCE_S = 0.5  # a task shorter than this shows nothing
_LINE_EVERY_S = 5.0


class ProgressBars:
    """An `EventSink` for a `with` block; bars disappear when their task is done."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._timer: threading.Timer | None = None
        self._waiting_for = ""
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.arrived()
        with self._lock:
            self._stop()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            note(event.text)
        if isinstance(event, DevicesChosen) and event.waiting:
            note(_choice(event))
        if isinstance(event, ShareOpened) and event.cached < 1:
            note(
                f"this device's share of the model is streamed: {100 * event.cached:.0f} % of it stay in memory, "
                f"{format_size(event.planned_bytes)} in all"
            )
        if not isinstance(event, Progress):
            return
        with self._lock:
            now = time.monotonic()
            began = self._began.setdefault(event.task, now)
            if event.done >= event.total:
                if event.unit == "kernels" and not self._terminal:
                    note(f"{event.task}: {event.total} in {now - began:.1f} s")
                self._finish(event.task)
            elif event.unit == "kernels" or now - began >= _PATIENCE_S:  # a kernel takes its second surely
                self._show(event, now)

    def waiting(self, task: str) -> None:
        """Something of unknown length begins: on a terminal a bar without end shows it, until `arrived`."""
        if self._terminal:
            self._waiting_for = task
            self._timer = threading.Timer(_PATIENCE_S, self._show_waiting)
            self._timer.daemon = True
            self._timer.start()

    def arrived(self) -> None:
        """What was `waiting` is over. May be called without it."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
            with self._lock:
                self._finish(self._waiting_for)

    def _show_waiting(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # else it arrived meanwhile
                self._show(Progress(self._waiting_for, 0, 0, ""), time.monotonic())

    def _show(self, event: Progress, now: float) -> None:
        if not self._terminal:
            if event.unit == "kernels":  # some seconds, once on a machine: one line when it is over
                return
            if now - self._said.get(event.task, -_LINE_EVERY_S) >= _LINE_EVERY_S:
                self._said[event.task] = now
                note(f"{event.task}: {_amount(event)}")
            return
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if event.task not in self._tasks:
            self._tasks[event.task] = self._bars.add_task(printable(event.task), amount="")
        total = event.total or None
        self._bars.update(self._tasks[event.task], completed=event.done, total=total, amount=_amount(event))

    def _finish(self, name: str) -> None:
        self._began.pop(name, None)
        if name in self._said:
            del self._said[name]
            note(f"{name}: done")
        task = self._tasks.pop(name, None)
        if task is not None:
            self._bars.remove_task(task)
            if not self._tasks:
                self._stop()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()


def _new_bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(),
    )
    return Bars(*columns, console=Console(stderr=True), transient=True)


def _choice(event: DevicesChosen) -> str:
    *others, last = event.devices
    who = f"{', '.join(others)} and {last} compute" if others else f"{last} computes alone"
    both = f"a token is expected to take {1e3 * event.token_s:.1f} ms so"
    if event.all_s is not None:
        both += f", {1e3 * event.all_s:.1f} ms with {', '.join(event.waiting)}"
    return f"{who}: {both} (--all-devices: with all nevertheless)"


def _amount(event: Progress) -> str:
    if event.unit == "bytes":
        return f"{format_size(event.done)} of {format_size(event.total)}"
    return f"{event.done} of {event.total} {event.unit}" if event.unit else ""
