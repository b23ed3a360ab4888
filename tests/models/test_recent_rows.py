"""Embeddings of the tokens that were used last."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.models.recent_rows import RecentRows


def test_the_last_ones_are_kept_and_no_more():
    asked: list[int] = []

    def make(token: int) -> np.ndarray:
        asked.append(token)
        return np.full(4, token, np.float32)

    rows = RecentRows(make, 4, most_bytes=3 * 16)
    for token in (1, 2, 3, 1, 4, 1, 3, 2):  # 4 takes the place of 2, which was used the longest ago; 2 that of 4
        assert (rows.row(token) == token).all()
    assert asked == [1, 2, 3, 4, 2]


def test_what_cannot_be_made_is_asked_for_again():
    failures = [OSError("disk")]

    def make(token: int) -> np.ndarray:
        if failures:
            raise failures.pop()
        return np.zeros(4, np.float32)

    rows = RecentRows(make, 4, most_bytes=16)
    with pytest.raises(OSError, match="disk"):
        rows.row(1)
    assert (rows.row(1) == 0).all()
