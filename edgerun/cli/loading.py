"""From a name on the command line to a loaded model, with progress on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.errors import UsageError
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


@dataclass(frozen=True)
class ClusterChoice:
    """That other devices take part, and how their sums travel."""

    allreduce: str
    wire: str
    same_tokens: bool | None
    all_devices: bool

    @classmethod
    def of(
        cls, wanted: bool, allreduce: str | None, wire: str | None, same_tokens: bool | None, all_devices: bool
    ) -> ClusterChoice | None:
        """By the options of `cluster_options`; None for this device alone. UsageError for options without --cluster."""
        if wanted:
            return cls(allreduce or "auto", wire or "f32", same_tokens, all_devices)
        if allreduce is not None or wire is not None or same_tokens is not None or all_devices:
            raise UsageError("--allreduce, --wire, --same-tokens and --all-devices are for --cluster")
        return None


def load_model(path: Path, options: Mapping[str, Any], group: ClusterChoice | None = None) -> LLM:
    """A loaded model, by what `loading_from` gave; the caller closes it."""
    from edgerun.api import LLM

    if group is None:
        return LLM(path, **options)
    from edgerun.cli.cluster import own_home

    home = own_home()
    from edgerun.api.household import load_in_household

    return load_in_household(
        path,
        home,
        allreduce=group.allreduce,
        wire=group.wire,
        same_tokens=group.same_tokens,
        all_devices=group.all_devices,
        **options,
    )


def kernels_of(llm: LLM) -> Kernels:
    """The kernels that a model was loaded with."""
    return llm.engine.decoder.kernels
