"""From a name on the command line to a loaded model, with progress on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.events import EventSink
from edgerun.paths import kind_of, user_path

if TYPE_CHECKING:
    from edgerun.api import LLM
    from edgerun.kernels import Kernels


def find_model(name: str, events: EventSink) -> Path:
    """The file that `name` means, downloaded when it is not here. A path loads no hub code."""
    path = user_path(name)
    if kind_of(path) == "file":
        return path
    from edgerun.hub import resolve

    return resolve(name, events=events)


def load_model(path: Path, options: Mapping[str, Any]) -> LLM:
    """A loaded model, by what `loading_from` gave; the caller closes it."""
    from edgerun.api import LLM

    return LLM(path, **options)


def kernels_of(llm: LLM) -> Kernels:
    """The kernels that a model was loaded with."""
    return llm.engine.decoder.kernels
