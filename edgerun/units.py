"""Sizes and rates as people write them."""

from __future__ import annotations

import re
from math import ceil

from edgerun.errors import UsageError

_SUFFIX = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def parse_size_bytes(text: str) -> int:
    """`"2G"`, `"512MiB"`, `"1.5 GB"`, `"4096"` -> bytes (binary multiples). Raises UsageError."""
    match = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"{text!r} is not a size; write for example 512M or 2G")
    return int(float(match[1]) * (1 << _SUFFIX[match[2].upper()]))


def round_up_size(n_bytes: int) -> int:
    """The next size that `format_size` writes exactly: what is read back is the same number, and enough."""
    shift, value = 0, float(n_bytes)
    while value >= 1000 and shift < 40:
        value, shift = value / 1024, shift + 10
    parts = 1 if value >= 100 or not shift else 10 if value >= 10 else 100 if value >= 1 else 1000
    whole = ceil(value * parts)
    while True:
        rounded = parse_size_bytes(format_size(whole / parts * (1 << shift)))
        if rounded >= n_bytes:
            return rounded
        whole += 1


def format_size(n_bytes: int | float) -> str:
    """Bytes -> `"637 MiB"`, three significant digits."""
    value, unit = float(n_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1000 or unit == "TiB":
            break
        value /= 1024
    if unit == "B":
        return f"{int(value)} B"
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
