"""Two sides at once: no task before its predecessors, no error lost, nothing left running."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerun.errors import Cancelled
from edgerun.prefill.schedule import Task, Timeline, run_tasks
from tests.prefill.making import attached, build, ort_backend, tokens

THREAD = "edgerun-prompt-backend"


def threads_left() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == THREAD]


@st.composite
def graphs(draw):
    """[(side, indices of earlier tasks)]"""
    count = draw(st.integers(0, 14))
    return [
        (
            draw(st.sampled_from(["backend", "cpu"])),
            draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True)) if index else [],
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("overlap", [True, False])
@settings(max_examples=60, deadline=None)
@given(graph=graphs(), pause=st.booleans())
def test_edges_are_kept_and_a_side_does_one_thing_at_a_time(overlap, graph, pause):
    done: set[int] = set()
    running: dict[str, int] = {"backend": 0, "cpu": 0}
    wrong: list[str] = []
    threads: dict[str, set[int]] = {"backend": set(), "cpu": set()}
    tasks: list[Task] = []

    def work(index: int, side: str, after: list[int]) -> None:
        if not done.issuperset(after):
            wrong.append(f"{index} ran before {after}")
        running[side] += 1
        if running[side] > 1:
            wrong.append(f"two tasks on {side}")
        threads[side].add(threading.get_ident())
        if pause:
            time.sleep(0.0005)
        running[side] -= 1
        if index in done:
            wrong.append(f"{index} ran twice")
        done.add(index)

    for index, (side, after) in enumerate(graph):
        run = lambda index=index, side=side, after=after: work(index, side, after)  # noqa: E731
        tasks.append(Task(side, side, run, tuple(tasks[i] for i in after)))
    timeline = Timeline()
    run_tasks(tasks, timeline, overlap=overlap)
    assert not wrong and done == set(range(len(graph)))
    assert threads["cpu"] <= {threading.get_ident()}, "the kernels belong to the calling thread"
    if overlap:
        assert threading.get_ident() not in threads["backend"]
    assert not threads_left()
    busy = timeline.backend_s + timeline.cpu_s
    assert timeline.wall_s >= max(timeline.backend_s, timeline.cpu_s) * 0.999
    assert overlap or timeline.wall_s >= busy * 0.999


def test_both_sides_work_at_once():
    """Each waits for the other to have begun: one after the other, neither would end."""
    met = threading.Barrier(2, timeout=10)
    tasks = [Task("backend", "a", lambda: met.wait() and None), Task("cpu", "b", lambda: met.wait() and None)]
    run_tasks(tasks, Timeline())
    assert met.n_waiting == 0 and not met.broken


def test_idle_time_is_what_is_left():
    timeline = Timeline()
    run_tasks([Task("backend", "a", lambda: time.sleep(0.05))], timeline)
    assert timeline.idle_s["backend"] < timeline.wall_s / 2 <= timeline.idle_s["cpu"]
    assert 0.04 < timeline.cost["a"] <= timeline.wall_s


def test_the_longest_way_goes_first():
    """Both are ready; the one behind which much is left is taken first, as costs that were measured say."""
    order: list[str] = []
    timeline = Timeline(cost={"short": 0.001, "long": 1.0, "last": 0.001})
    short = Task("cpu", "short", lambda: order.append("short"))
    first = Task("cpu", "short", lambda: order.append("first of the long way"))
    tasks = [short, first, Task("backend", "long", lambda: order.append("long"), (first,))]
    run_tasks(tasks, timeline)
    assert order[0] == "first of the long way"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("side", ["backend", "cpu"])
@pytest.mark.parametrize("overlap", [True, False])
def test_an_error_ends_it(side, error, overlap):
    ran: list[str] = []
    other = "cpu" if side == "backend" else "backend"

    def fail() -> None:
        raise error("broken")

    failing = Task(side, "fail", fail)
    after = [Task(each, "after", lambda: ran.append("after"), (failing,)) for each in ("backend", "cpu")]
    beside = Task(other, "beside", lambda: time.sleep(0.05) or ran.append("beside"))
    later = [Task(other, "later", lambda: ran.append("later"), (beside, failing))]
    with pytest.raises(error, match="broken"):
        run_tasks([beside, failing, *after, *later], Timeline(), overlap=overlap)
    assert "after" not in ran and "later" not in ran
    here = len(ran)
    time.sleep(0.06)
    assert len(ran) == here, "nothing runs on behind our back"
    assert not threads_left()


def test_what_runs_on_the_device_is_waited_for():
    """It reads and writes our buffers: they must not be given back before."""
    began, ended = threading.Event(), threading.Event()

    def slow() -> None:
        began.set()
        time.sleep(0.1)
        ended.set()

    def fail() -> None:
        assert began.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([Task("backend", "slow", slow), Task("cpu", "fail", fail)], Timeline())
    assert ended.is_set()


@pytest.mark.parametrize(("name", "scheme"), [("llama", "w8a8"), ("gemma2", "fp32"), ("smallthinker", "w8a8")])
def test_order_does_not_change_a_bit(models, tmp_path, name, scheme):
    model, ids = models(name), tokens(150)
    built = build(model, tmp_path, scheme, (32,))
    with attached(ort_backend(model, built, overlap=False), model.decoder):
        want = model.logits(ids)
    with attached(ort_backend(model, built), model.decoder):
        for _ in range(3):
            assert np.array_equal(model.logits(ids), want)


@pytest.mark.parametrize("checks", [0, 1, 4])
def test_a_cancelled_prompt_leaves_the_cache(models, tmp_path, checks):
    model = models("llama")
    decoder, first, second = model.decoder, tokens(20), tokens(100, seed=3)
    left = iter([False] * checks)
    with attached(ort_backend(model, build(model, tmp_path, sizes=(32,))), decoder):
        cache = decoder.new_cache(200)
        decoder.forward(first, cache)
        with pytest.raises(Cancelled):
            decoder.forward(second, cache, cancelled=lambda: next(left, True))
        assert cache.length == len(first) and not threads_left()
        again = decoder.forward(second, cache, logits="all")
        fresh = decoder.new_cache(200)
        decoder.forward(first, fresh)
        assert np.array_equal(again, decoder.forward(second, fresh, logits="all"))


@pytest.mark.parametrize("where", ["kernels", "session"])
def test_an_interrupted_prompt_leaves_the_cache(models, tmp_path, monkeypatch, where):
    model = models("llama")
    decoder, ids = model.decoder, tokens(100)
    backend = ort_backend(model, build(model, tmp_path, sizes=(32,)))

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with attached(backend, decoder):
        want, cache = model.logits(ids), decoder.new_cache(100)
        with monkeypatch.context() as patched:
            patched.setattr(
                *((decoder.kernels, "attention") if where == "kernels" else (backend._sessions, "run")), interrupt
            )
            with pytest.raises(KeyboardInterrupt):
                decoder.forward(ids, cache)
        assert cache.length == 0 and not threads_left()
        assert np.array_equal(decoder.forward(ids, cache, logits="all"), want)
