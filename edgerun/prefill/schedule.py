"""Two sides work at once: the backend on its device, our kernels on the CPU.

A prompt's work is a graph of tasks. Each side takes, of its tasks whose predecessors are done, the one with the
longest way still behind it (list scheduling by critical path), so that chunk c of one layer runs on the device while
the CPU does the attention of chunk c - 1 or what other products' grids cut off. Costs are measured as it goes: a kind
of task is expected to take what its last ones took. Results do not depend on the order: tasks touch only what their
edges say.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Literal

from edgerun.errors import ReadError
from edgerun.events import Span, SpanSink

Side = Literal["backend", "cpu"]
_POLL_S = 0.05  # after which the CPU looks whether the other side is still there


@dataclass(eq=False)
class Task:
    """`after`: tasks that must be done before, all of them listed earlier; `kind`: of tasks that take alike."""

    side: Side
    kind: str
    run: Callable[[], None]
    after: tuple[Task, ...] = ()
    rank: float = field(default=0.0, init=False)


@dataclass
class Timeline:
    """Seconds. `cost`: what a task of each kind takes, a running mean; `by_kind`: what all of them took, by the first
    word of the kind; `watcher`: told of every task, on the lanes "backend" and "beside the backend"."""

    wall_s: float = 0.0
    backend_s: float = 0.0
    cpu_s: float = 0.0
    cost: dict[str, float] = field(default_factory=dict)
    by_kind: dict[str, float] = field(default_factory=dict)
    watcher: SpanSink | None = None

    @property
    def idle_s(self) -> dict[Side, float]:
        """Of both sides."""
        return {"backend": self.wall_s - self.backend_s, "cpu": self.wall_s - self.cpu_s}

    def ran(self, task: Task, began_s: float, seconds: float) -> None:
        """Count a task."""
        if self.watcher is not None:
            lane = "backend" if task.side == "backend" else "beside the backend"
            self.watcher(Span(lane, task.kind, began_s, began_s + seconds))
        if task.side == "backend":
            self.backend_s += seconds
        else:
            self.cpu_s += seconds
        kind = task.kind.split()[0]
        self.by_kind[kind] = self.by_kind.get(kind, 0.0) + seconds
        self.cost[task.kind] = 0.7 * self.cost.get(task.kind, seconds) + 0.3 * seconds


def run_tasks(tasks: Sequence[Task], timeline: Timeline, *, overlap: bool = True) -> None:
    """All of them; `overlap` False: one by one, in the order of the list. CPU tasks run on the calling thread. After an
    error no task is begun any more, what runs is waited for, and the error is raised."""
    began = time.perf_counter()
    try:
        if overlap:
            _Run(tasks, timeline).run()
        else:
            for task in tasks:
                _timed(task, timeline)
    finally:
        timeline.wall_s += time.perf_counter() - began


def _timed(task: Task, timeline: Timeline) -> None:
    began = time.perf_counter()
    task.run()
    timeline.ran(task, began, time.perf_counter() - began)


class _Run:
    def __init__(self, tasks: Sequence[Task], timeline: Timeline) -> None:
        self._timeline = timeline
        self._followers: dict[Task, list[Task]] = {task: [] for task in tasks}
        self._missing = {task: len(task.after) for task in tasks}
        for task in tasks:
            for earlier in task.after:
                self._followers[earlier].append(task)
        for task in reversed(tasks):
            behind = max((each.rank for each in self._followers[task]), default=0.0)
            task.rank = behind + timeline.cost.get(task.kind, 1e-3)
        self._ready: dict[Side, list[Task]] = {"backend": [], "cpu": []}
        self._left = len(tasks)
        for task in tasks:
            if not task.after:
                self._ready[task.side].append(task)
        self._orders: SimpleQueue[Task | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Task, BaseException | None, float, float]] = SimpleQueue()

    def run(self) -> None:
        thread = threading.Thread(target=self._serve, name="edgerun-prompt-backend", daemon=True)
        thread.start()
        busy = False
        try:
            while self._left:
                if not busy and self._ready["backend"]:
                    self._orders.put(self._take("backend"))
                    busy = True
                if self._ready["cpu"] and (not busy or self._done.empty()):
                    task = self._take("cpu")
                    _timed(task, self._timeline)
                    self._finish(task)
                    continue
                task, error, began, seconds = self._next_done(thread)
                busy = False
                if error is not None:
                    raise error
                self._timeline.ran(task, began, seconds)
                self._finish(task)
        finally:
            self._orders.put(None)
            thread.join()  # what runs on the device reads our buffers

    def _next_done(self, thread: threading.Thread) -> tuple[Task, BaseException | None, float, float]:
        while True:
            with contextlib.suppress(Empty):
                return self._done.get(timeout=_POLL_S)
            if not thread.is_alive() and self._done.empty():
                raise ReadError("the thread that runs a prompt's graphs has ended; ask again")

    def _take(self, side: Side) -> Task:
        ready = self._ready[side]
        best = max(range(len(ready)), key=lambda i: ready[i].rank)
        return ready.pop(best)

    def _finish(self, task: Task) -> None:
        self._left -= 1
        for follower in self._followers[task]:
            self._missing[follower] -= 1
            if not self._missing[follower]:
                self._ready[follower.side].append(follower)

    def _serve(self) -> None:
        while (task := self._orders.get()) is not None:
            began = time.perf_counter()
            error: BaseException | None = None
            try:
                task.run()
            except BaseException as raised:  # noqa: BLE001 - handed to the thread that waits
                error = raised
            self._done.put((task, error, began, time.perf_counter() - began))
