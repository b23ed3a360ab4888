"""The error for an argument that cannot be."""

from __future__ import annotations

import reprlib

from edgerun.errors import UsageError

_MOST_BITS = 256  # of a whole number that is written out
_LONGEST = 80


class _Short(reprlib.Repr):
    """Values as Python writes them, but short, and whatever they are: `__repr__` may raise, nest or go on for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() > _MOST_BITS:
            return f"a whole number of {x.bit_length()} bits"
        return super().repr_int(x, level)


def shown(value: object) -> str:
    """`value` for an error's message: at most some hundred characters on one line."""
    text = _Short().repr(value)
    return " ".join(text.split())


def refused(name: str, wanted: str, value: object) -> UsageError:
    """The error that names an argument, what it may be, and what it was."""
    return UsageError(f"{name} must be {wanted}, got {shown(value)}")
