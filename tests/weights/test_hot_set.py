"""The kept hot set: what was written comes back, what is damaged or foreign is dropped, a crash leaves the old one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgerun import paths
from edgerun.events import Notice
from edgerun.trust import Folder
from edgerun.weights.hot_set import load_scores, save_scores

SCORES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_back_again(tmp_path):
    path = tmp_path / "a" / "m.hot"
    events = []
    assert load_scores(path, 3, 4, events.append) is None
    save_scores(path, SCORES)
    assert np.array_equal(load_scores(path, 3, 4, events.append), SCORES)
    assert load_scores(path, 3, 4).flags.writeable
    assert [path.name for path in path.parent.iterdir()] == ["m.hot"]
    assert not events


def dropped(path, layers=3, experts=4):
    """Whether loading the file says so, once, and leaves a start that works."""
    events = []
    assert load_scores(path, layers, experts, events.append) is None
    assert not path.exists()
    assert load_scores(path, layers, experts, events.append) is None
    save_scores(path, SCORES)
    assert np.array_equal(load_scores(path, 3, 4, events.append), SCORES)
    return len(events) == 1 and isinstance(events[0], Notice) and str(path) in events[0].text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.sets(st.integers(0, 8 * 96 - 1), min_size=1, max_size=12), cut=st.integers(0, 96), more=st.binary())
@example(flips={0}, cut=96, more=b"")
@example(flips=set(), cut=0, more=b"")
@example(flips=set(), cut=96, more=b"x" * 1000)
def test_damage_of_any_kind(tmp_path, flips, cut, more):
    path = tmp_path / "m.hot"
    save_scores(path, SCORES)
    good = path.read_bytes()
    assert len(good) == 96
    bad = bytearray(good)
    for flip in flips:
        bad[flip // 8] ^= 1 << flip % 8
    path.write_bytes(bytes(bad[:cut]) + more)
    assert path.read_bytes() == good or dropped(path)


@pytest.mark.parametrize("scores", [-SCORES - 1, SCORES + np.float32(np.nan), SCORES + np.float32(np.inf), SCORES.T])
def test_numbers_that_are_no_scores(tmp_path, scores):
    save_scores(tmp_path / "m.hot", scores)
    assert dropped(tmp_path / "m.hot")


def test_of_another_shape(tmp_path):
    save_scores(tmp_path / "m.hot", SCORES)
    assert dropped(tmp_path / "m.hot", 4, 3)


def test_a_file_that_others_may_write_is_not_used(user_home):
    path = paths.cache_dir() / "hot" / "m.hot"
    save_scores(path, SCORES)
    path.parent.chmod(0o777)
    events = []
    assert load_scores(path, 3, 4, events.append) is None
    assert path.exists()
    assert len(events) == 1
    with pytest.raises(PermissionError, match="others may write"):
        save_scores(path, SCORES)


def test_a_crash_while_writing(tmp_path, monkeypatch):
    path = tmp_path / "hot" / "m.hot"
    save_scores(path, SCORES)

    def torn(folder, name, pieces):
        def half():
            yield next(iter(pieces))
            raise KeyboardInterrupt

        return whole(folder, name, half())

    whole = Folder.replace
    monkeypatch.setattr(Folder, "replace", torn)
    with pytest.raises(KeyboardInterrupt):
        save_scores(path, SCORES + 1)
    assert np.array_equal(load_scores(path, 3, 4), SCORES)
    assert len(list(path.parent.iterdir())) == 1
