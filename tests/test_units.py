"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgerun.errors import UsageError
from edgerun.units import format_size, parse_size_bytes, round_up_size


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"), (1048100000, "1000 MiB"), (5 << 30, "5 GiB")],
)
def test_written(n_bytes, text):
    assert format_size(n_bytes) == text


@given(st.integers(0, 1 << 45))
def test_never_in_powers_of_ten_and_read_back_nearly(n_bytes):
    text = format_size(n_bytes)
    assert "e" not in text
    assert parse_size_bytes(text) == pytest.approx(n_bytes, rel=0.006, abs=1)


@pytest.mark.parametrize("text", ["", "G", "-1G", "1 X", "1e9", "two"])
def test_not_a_size(text):
    with pytest.raises(UsageError, match="not a size"):
        parse_size_bytes(text)


@example(1_072_668_082_177)  # 999 GiB and a bit: a thousand are written as parts of a TiB
@given(st.integers(1 << 20, 1 << 42))
def test_rounded_up_to_what_can_be_written(n_bytes):
    rounded = round_up_size(n_bytes)
    assert n_bytes <= rounded <= max(n_bytes * 1.011, n_bytes + (1 << 20))
    assert parse_size_bytes(format_size(rounded)) == rounded == round_up_size(rounded)
