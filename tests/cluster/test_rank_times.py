"""What ranks tell the head of their time, and what that makes of it."""

from __future__ import annotations

import time

import numpy as np
import pytest

from edgerun.cluster.rank_times import RankTimes, Split, Stopwatch, heard, split, straggler
from tests.cluster.in_threads import one_thread, resident, together
from tests.models.instances import open_instance


def test_whoever_waits_least_waits_for_the_wire_alone() -> None:
    parts = split([RankTimes(9, 1.0, 0.2, 0.1, 50), RankTimes(9, 1.0, 0.7, 0.0, 50), RankTimes(9, 1.0, 0.5, 2.0, 50)])
    wanted = [(0.7, 0, 0.2, 0.1), (0.3, 0.5, 0.2, 0), (0, 0.3, 0.2, 0.5)]
    for part, each in zip(parts, wanted, strict=True):
        assert tuple(vars(part).values()) == pytest.approx(each)
    assert straggler(parts) == 0
    assert straggler(parts[1:]) == 1  # its disk
    assert straggler([Split(0.5, 0, 0.1, 0), Split(0.45, 0.05, 0.1, 0)]) is None
    assert straggler(parts[:1]) is None and straggler([]) is None and split([]) == []


def test_nonsense_is_nothing() -> None:
    assert heard(np.array([np.nan, -1, np.inf, 2, 3], np.float32)) == RankTimes(0, 0, 0, 2, 3)


def test_a_stopwatch_begins_anew_when_it_was_read() -> None:
    stalled = 1.0
    watch = Stopwatch(lambda: {"stall_s": stalled, "hits": 3})
    watch.told()
    watch.passes, watch.busy_s, watch.waited_s, stalled = 2, 3.0, 0.5, 1.25
    first, again = heard(watch.told()), heard(watch.told())
    assert first == RankTimes(2, 3, 0.5, 0.25, first.memory_mib) and first.memory_mib > 10
    assert again == RankTimes(0, 0, 0, 0, first.memory_mib)


def test_the_head_hears_what_all_ranks_waited(tmp_path) -> None:
    gguf, spec = open_instance("llama", tmp_path)
    with gguf, together(gguf, spec, [1, 1, 1], tmp_path, resident(one_thread)) as group:
        slow = group.collectives[1]
        plain = slow.all_reduce

        def late(x: np.ndarray) -> None:
            time.sleep(0.02)  # as on a slow wire: all ranks wait for it
            plain(x)

        slow.all_reduce = late
        cache = group.decoder.new_cache(100)
        for token in range(6):
            group.decoder.forward([token], cache)
        times = group.conductor.lockstep.times
        assert [each.passes for each in times] == [1, 1, 1]
        assert all(each.busy_s >= each.waited_s > 0 for each in times)
        assert min(each.waited_s for each in times) > 0.02 * 2 * spec.n_layers * 0.9
