"""What a conversion did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fallback:
    """A weight that could not be stored in the type asked for."""

    tensor: str
    wanted: str
    used: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The file that was made: `types` counts its tensors by type, `notes` says what a reader should know."""

    path: Path
    architecture: str
    n_tensors: int
    n_bytes: int
    types: dict[str, int]
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
