"""Memory that runs out is an error of ours, wherever it happens: what was done, and what would help."""

from __future__ import annotations

from contextlib import ContextDecorator
from types import TracebackType

from edgerun.errors import DoesNotFitError, EdgerunError


def told_as_shortage(doing: str) -> _Shortage:
    """Within (or as a decorator of a function), MemoryError becomes DoesNotFitError that says what was being done."""
    return _Shortage(doing)


class _Shortage(ContextDecorator):
    """No generator: every token goes through three of them."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, MemoryError) and not isinstance(error, EdgerunError):
            reason = str(error) or "the system gave none"
            raise DoesNotFitError(
                f"out of memory while {self._doing}: {reason}; use a smaller context or model, or stream it (memory)"
            ) from error
