"""Whether what stands before a call's end breaks off within a value: then that end is a part of it, and no end."""

from __future__ import annotations

import re
from collections.abc import Callable

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ANY_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'', re.DOTALL)
_QUOTE = re.compile("[\"']")


def never(body: str) -> bool:
    """Of formats whose ends cannot stand in values."""
    return False


def in_json(body: str) -> bool:
    """Within a text of the JSON that begins with the first brace."""
    start = min((at for at in (body.find("{"), body.find("[")) if at >= 0), default=-1)
    return start >= 0 and '"' in _STRING.sub("", body[start:])


def in_python(body: str) -> bool:
    """Within one of Python's texts, or JSON's."""
    return _QUOTE.search(_ANY_STRING.sub("", body)) is not None


def in_tagged(body: str) -> bool:
    """Within JSON, or a value between tags of Qwen's or GLM's."""
    if body.lstrip().startswith(("{", "[")):
        return in_json(body)
    tags = (("<parameter=", "</parameter>"), ("<arg_value>", "</arg_value>"))
    return any(body.rfind(begin) > body.rfind(end) for begin, end in tags)


def in_parameter(prefix: str) -> Callable[[str], bool]:
    """Within <PREFIXparameter ...>."""
    begin, end = f"<{prefix}parameter ", f"</{prefix}parameter>"

    def is_within(body: str) -> bool:
        return body.rfind(begin) > body.rfind(end)

    return is_within


def in_gemmas_quotes(body: str) -> bool:
    """Within one of Gemma's texts."""
    return body.count('<|"|>') % 2 == 1
