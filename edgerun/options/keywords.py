"""Keyword arguments by their declarations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgerun.errors import UsageError
from edgerun.options.refusal import shown


def checked_keywords(given: Mapping[str, object], known: Iterable[str], what: str) -> None:
    """UsageError for a name that is none of `known`; the values are checked by whoever takes them."""
    names = list(known)
    unknown = [name for name in given if name not in names]
    if unknown:
        listed = ", ".join(name if isinstance(name, str) else shown(name) for name in unknown)
        raise UsageError(f"unknown {what} {listed}; there are {', '.join(sorted(names))}")
