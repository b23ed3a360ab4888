"""What the JSON schema of an argument says about values that are written without quotes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DEEPEST = 8  # alternatives within alternatives that are looked at


def kinds_of(schema: Any) -> set[str]:
    """JSON's names of what a value may be ("string", "integer", "null", ...); of one that says nothing there are
    none."""
    kinds: set[str] = set()
    for each in _alternatives(schema):
        kind = each.get("type")
        if isinstance(kind, str):
            kinds.add(kind)
        elif isinstance(kind, list):
            kinds.update(name for name in kind if isinstance(name, str))
        elif isinstance(each.get("enum"), list) and any(isinstance(value, str) for value in each["enum"]):
            kinds.add("string")
    return kinds


def schema_of_key(schema: Any, key: str) -> Any:
    """Of a mapping's value; None: nothing is said of it."""
    found = (each.get("properties") for each in _alternatives(schema))
    return next((each[key] for each in found if isinstance(each, Mapping) and key in each), None)


def schema_of_item(schema: Any) -> Any:
    """Of a list's values; None: nothing is said of them."""
    return next((each["items"] for each in _alternatives(schema) if "items" in each), None)


def _alternatives(schema: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The schema, and those of which a value has to fit any."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return
    yield schema
    for name in ("anyOf", "oneOf"):
        others = schema.get(name)
        for other in others if isinstance(others, list) else ():
            yield from _alternatives(other, depth + 1)
