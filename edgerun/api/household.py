"""A model that this device and all others that it knows compute together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from edgerun.api.cluster import load_clustered
from edgerun.api.device_rates import device_rates
from edgerun.api.drafting import LOOKUP
from edgerun.api.llm import LLM
from edgerun.api.loading import choose_context, find_model
from edgerun.api.weights import kv_options
from edgerun.cluster.household import Household
from edgerun.cluster.plan import Model
from edgerun.cluster.profiles import PlannedDevice
from edgerun.cluster.shares import UNMEASURED_DISK
from edgerun.cluster.ways import FOLDING, Way
from edgerun.cluster.wire_format import wire_format
from edgerun.cluster.worth import Worth
from edgerun.device import memory_limits
from edgerun.engine.lookup import lookup
from edgerun.errors import UsageError
from edgerun.events import Notice
from edgerun.formats.gguf import open_gguf
from edgerun.kernels import load_sizes
from edgerun.models import load_spec
from edgerun.options import LoadKeywords, LoadOptions, load_options
from edgerun.planning import process_budget
from edgerun.planning.process import elsewhere_bytes, process_state
from edgerun.planning.quick_rates import QuickRates

if TYPE_CHECKING:
    from edgerun.cluster.home import Home


def load_in_household(
    model: str | Path,
    home: Home,
    *,
    allreduce: str = "auto",
    wire: str = "f32",
    same_tokens: bool | None = None,
    all_devices: bool = False,
    **keywords: Unpack[LoadKeywords],
) -> LLM:
    """An `LLM` whose model is shared out among those of the devices that answer now with which a token should be made
    clearly sooner than without (`events.DevicesChosen`), and anew when they change; all_devices: among all of them.
    allreduce, wire: as way and wire of `Head.begin`. same_tokens: whether answers are the same, to the token,
    whichever devices take part; None: where that costs little. UsageError where a small model shall draft: only the
    head would have it."""
    options = load_options(keywords)
    if options.draft not in (None, LOOKUP):
        raise UsageError(f"draft: a group of devices takes {LOOKUP!r} alone, not {options.draft!r}")
    can_be_same = wire == "f32" and allreduce in ("auto", *FOLDING)
    if same_tokens and not can_be_same:
        raise UsageError("the same tokens on any devices need --wire f32, and the star or the mesh as --allreduce")
    path = find_model(model, options.events)
    rates = device_rates(options.kernels, options.n_threads, options.events)
    worth = None if all_devices else _worth(path, options, home.identity.name, rates, allreduce, wire)
    household = Household(home, options.events, way=allreduce, wire=wire, worth=worth)
    if not household.has_news():
        options.events(Notice("no other device answers: this one computes alone"))
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


def _worth(path: Path, options: LoadOptions, name: str, rates: QuickRates, allreduce: str, wire: str) -> Worth:
    """Of this device, as the head of the model at `path`."""
    budget_bytes, _ = process_budget(options.memory_bytes, memory_limits(), process_state().private_bytes)
    head = PlannedDevice(
        name,
        budget_bytes,
        rates.weights_bytes_per_s,
        rates.prompt_ops_per_s,
        rates.disk_bytes_per_s or UNMEASURED_DISK,
    )
    with open_gguf(path) as gguf:
        spec = load_spec(gguf)
        context = choose_context(options.context, spec, gguf.metadata)
        model = Model(
            spec, load_sizes(options.kernels), context, kv_options(options.kv), elsewhere_bytes(gguf.metadata)
        )
    ways = FOLDING if allreduce == "auto" else (Way(allreduce).name,)
    return Worth(model, head, ways, wire_format("f32" if wire == "auto" else wire))
