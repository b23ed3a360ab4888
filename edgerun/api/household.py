"""A model that this device and all others that it knows compute together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from edgerun.api.cluster import load_clustered
from edgerun.api.device_rates import device_rates
from edgerun.api.drafting import LOOKUP
from edgerun.api.llm import LLM
from edgerun.api.loading import find_model
from edgerun.cluster.household import Household
from edgerun.cluster.shares import UNMEASURED_DISK
from edgerun.cluster.ways import FOLDING
from edgerun.engine.lookup import lookup
from edgerun.errors import UsageError
from edgerun.events import Notice
from edgerun.options import LoadKeywords, load_options

if TYPE_CHECKING:
    from edgerun.cluster.home import Home


def load_in_household(
    model: str | Path,
    home: Home,
    *,
    allreduce: str = "auto",
    wire: str = "f32",
    same_tokens: bool | None = None,
    **keywords: Unpack[LoadKeywords],
) -> LLM:
    """An `LLM` whose model is shared out among the devices that answer now, and anew when they change; alone when none
    does. allreduce, wire: as way and wire of `Head.begin`. same_tokens: whether answers are the same, to the token,
    whichever devices take part; None: where that costs little. UsageError where a small model shall draft: only the
    head would have it."""
    options = load_options(keywords)
    if options.draft not in (None, LOOKUP):
        raise UsageError(f"draft: a group of devices takes {LOOKUP!r} alone, not {options.draft!r}")
    can_be_same = wire == "f32" and allreduce in ("auto", *FOLDING)
    if same_tokens and not can_be_same:
        raise UsageError("the same tokens on any devices need --wire f32, and the star or the mesh as --allreduce")
    path = find_model(model, options.events)
    household = Household(home, options.events, way=allreduce, wire=wire)
    if not household.has_news():
        options.events(Notice("no other device answers: this one computes alone"))
    rates = device_rates(options.kernels, options.n_threads, options.events)
    engine, path, release = load_clustered(
        path,
        options,
        household,
        own_rate=rates.weights_bytes_per_s,
        own_disk_rate=rates.disk_bytes_per_s or UNMEASURED_DISK,
        shards=home.shards,
        draft=None if options.draft is None else lookup,
        same_tokens=same_tokens if can_be_same else False,
    )
    return LLM.from_engine(engine, name=path.stem, release=release)
