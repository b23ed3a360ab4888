"""Memory that runs out is an error of ours, wherever it happens: what was done, and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgerun.errors import DoesNotFitError, EdgerunError


@contextmanager
def told_as_shortage(doing: str) -> Iterator[None]:
    """Within (or as a decorator of a function), MemoryError becomes DoesNotFitError that says what was being done."""
    try:
        yield
    except EdgerunError:
        raise
    except MemoryError as error:
        reason = str(error) or "the system gave none"
        raise DoesNotFitError(
            f"out of memory while {doing}: {reason}; use a smaller context or model, or stream it (memory)"
        ) from error
