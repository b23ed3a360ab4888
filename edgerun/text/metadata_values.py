"""Values of GGUF metadata as a tokenizer needs them: checked for their kind, copied out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import FormatError

_T = TypeVar("_T")
_D = TypeVar("_D", bound=np.generic)

_CHECKED_TOGETHER = 256


def scalar(metadata: Mapping[str, Any], key: str, kind: type[_T], default: _T) -> _T:
    """A value of that kind; the default where there is none. FormatError for another kind."""
    value = metadata.get(key)
    if value is None:
        return default
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, kind):
        raise FormatError(f"{key} must be a {kind.__name__}, got {type(value).__name__}")
    return value


def strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """An array of texts; none when the key is missing. FormatError for anything else."""
    value = metadata.get(key)
    if value is None:
        return []
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise FormatError(f"{key} must be an array of strings, got {type(value).__name__}")
    values = list(value)  # the empty ones get names in it
    for i, text in enumerate(values):
        if not isinstance(text, str):
            raise FormatError(f"{key}[{i}] must be a string, got {type(text).__name__}")
    try:
        for start in range(0, len(values), _CHECKED_TOGETHER):  # all at once would take as much as they do again
            "".join(values[start : start + _CHECKED_TOGETHER]).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise FormatError(f"{key} holds text that is no Unicode: {error}") from error
    return values


def numbers(metadata: Mapping[str, Any], key: str, count: int, dtype: type[_D]) -> NDArray[_D]:
    """`count` numbers; zeros when the key is missing. More than needed is cut, as llama.cpp does. FormatError for
    anything else."""
    if metadata.get(key) is None:
        return np.zeros(count, dtype)
    array = all_numbers(metadata, key, dtype)
    if len(array) < count:
        raise FormatError(f"{key} has {len(array)} entries for {count} tokens")
    return array[:count]


def all_numbers(metadata: Mapping[str, Any], key: str, dtype: type[_D]) -> NDArray[_D]:
    """An array of numbers that is there, however long it is. FormatError for anything else."""
    value = metadata.get(key)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise FormatError(f"{key} must be an array of numbers: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise FormatError(f"{key} must be an array of numbers, got {type(value).__name__}")
    return array.astype(dtype)
