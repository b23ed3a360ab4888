"""From a name on the command line to a loaded model, with progress on stderr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.cli.options import ModelOptions
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


def load_model(name: str | Path, options: ModelOptions, events: EventSink) -> LLM:
    """A loaded model; the caller closes it."""
    from edgerun.api import LLM

    path = name if isinstance(name, Path) else find_model(name, events)
    return LLM(
        path,
        context=options.context,
        threads="auto" if options.threads is None else options.threads,
        memory=options.memory,
        prefetch=options.prefetch,
        kernels=options.kernels,
        prefill=options.prefill,
        events=events,
    )


def kernels_of(llm: LLM) -> Kernels:
    """The kernels that a model was loaded with."""
    decoder: Any = llm.engine.decoder
    kernels: Kernels = decoder.kernels
    return kernels
