"""The kept hot set: what was written comes back, what is damaged or foreign does not, a crash leaves the old one."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.weights.hot_set import load_scores, save_scores

SCORES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_back_again(tmp_path):
    save_scores(tmp_path / "a" / "m.npz", SCORES)
    assert np.array_equal(load_scores(tmp_path / "a" / "m.npz", 3, 4), SCORES)
    assert load_scores(tmp_path / "a" / "m.npz", 4, 3) is None
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.npz"]


def test_damage_only_costs_the_warmth(tmp_path):
    path = tmp_path / "m.npz"
    assert load_scores(path, 3, 4) is None
    save_scores(path, SCORES)
    good = path.read_bytes()
    for bad in (b"", good[:-30], b"PK" + bytes(200), good.replace(b"scores", b"SCORES")):
        path.write_bytes(bad)
        assert load_scores(path, 3, 4) is None
    for scores in (-SCORES - 1, SCORES * np.float32(np.nan), SCORES.astype(np.float64)):
        np.savez(path, scores=scores)
        assert load_scores(path, 3, 4) is None
    np.savez(path, scores=np.array([{"an": "object"}], dtype=object))
    assert load_scores(path, 3, 4) is None, "never unpickled"


def test_a_crash_while_writing(tmp_path, monkeypatch):
    path = tmp_path / "hot" / "m.npz"
    save_scores(path, SCORES)
    monkeypatch.setattr(np, "savez", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_scores(path, SCORES + 1)
    assert np.array_equal(load_scores(path, 3, 4), SCORES)
    assert len(list(path.parent.iterdir())) == 1
