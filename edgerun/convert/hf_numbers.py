"""Numbers out of a config.json, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgerun.errors import FormatError


def whole_of(config: Mapping[str, Any], key: str) -> int:
    """A positive whole number."""
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise FormatError(f"config.json: {key} is {value!r}, not a positive number")
    return value


def count_of(config: Mapping[str, Any], key: str) -> int:
    """A whole number, 0 where there is none."""
    value = config.get(key) or 0
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise FormatError(f"config.json: {key} is {value!r}, not a count")
    return value


def real_of(config: Mapping[str, Any], key: str, default: float) -> float:
    """A number that is not negative; `default` where there is none."""
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 <= value < 1e30:
        raise FormatError(f"config.json: {key} is {value!r}, not a number")
    return float(value)
