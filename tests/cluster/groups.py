"""Groups whose ranks are threads of the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edgerun.cluster.collective import Collective

T = TypeVar("T")


def on_all(group: Sequence[Collective], act: Callable[[Collective], T]) -> list[T]:
    """What `act` returns on each rank, all at once; the first error of any."""
    with ThreadPoolExecutor(len(group)) as threads:
        return list(threads.map(act, group))
