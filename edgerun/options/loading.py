"""The options of loading a model: what each may be, and its default. `LLM` says what they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

from edgerun.events import EventSink, ignore
from edgerun.options.keywords import checked_keywords
from edgerun.options.kinds import Callback, Choice, Flag, Kind, Number, Size, Text, Whole
from edgerun.options.sampling import LARGEST_SEED

KERNEL_NAMES = (
    "auto",
    "reference",
    "portable",
    "avx2",
    "avxvnni",
    "avx512",
    "avx512vnni",
    "avx512vbmi",
    "amx",
    "neon",
    "dotprod",
    "i8mm",
)
MOST_THREADS = 1024  # more than any machine's cores; each takes memory, and a wake-up for every operation

# Of keys and values, or of keys / of values
KV_NAMES = ("f16", "q8_0", "q4_0", *("q8_0/q4_0", "f16/q8_0", "f16/q4_0", "q8_0/f16", "q4_0/q8_0", "q4_0/f16"))

LOADING: Mapping[str, Kind] = {
    "context": Whole(1, 2**31 - 1, words=(None,)),
    "threads": Whole(1, MOST_THREADS, words=("auto",)),
    "memory": Size(),
    "kv": Choice(KV_NAMES),
    "window": Whole(16, 2**31 - 1, words=(None,)),
    "sinks": Whole(0, 256),
    "prefetch": Flag(),
    "kernels": Choice(KERNEL_NAMES),
    "prefill": Text(),
    "tpot_s": Number(0, above=True, words=(None,)),
    "seed": Whole(0, LARGEST_SEED, words=(None,)),
    "context_shift": Flag(),
    "draft": Text(words=(None,)),
    "replies": Choice(("auto", "plain")),
    "power_limit": Number(0, above=True, words=(None,)),
    "power_meter": Text(),
    "battery_saver": Flag(),
    "max_celsius": Number(0, 150, above=True, words=(None,)),
    "events": Callback(),
}


class MachineKeywords(TypedDict, total=False):
    """What of the machine is used, as keyword arguments."""

    threads: int | Literal["auto"]
    memory: int | str
    kernels: str
    events: EventSink


class PlanKeywords(MachineKeywords, total=False):
    """What decides how much memory a model takes."""

    context: int | None
    kv: str
    window: int | None
    sinks: int


class LoadKeywords(PlanKeywords, total=False):
    """All fields of `LoadOptions` as keyword arguments."""

    prefetch: bool
    prefill: str
    tpot_s: float | None
    seed: int | None
    context_shift: bool
    draft: str | None
    replies: str
    power_limit: float | None
    power_meter: str
    battery_saver: bool
    max_celsius: float | None


MACHINE_NAMES = tuple(MachineKeywords.__annotations__)
PLAN_NAMES = tuple(PlanKeywords.__annotations__)


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model, checked. UsageError for a value that cannot be. `memory` becomes bytes, unless "auto"."""

    context: int | None = None
    threads: int | Literal["auto"] = "auto"
    memory: int | str = "auto"
    kv: str = "f16"
    window: int | None = None
    sinks: int = 4
    prefetch: bool = True
    kernels: str = "auto"
    prefill: str = "auto"
    tpot_s: float | None = None
    seed: int | None = None
    context_shift: bool = False
    draft: str | None = None
    replies: str = "auto"
    power_limit: float | None = None
    power_meter: str = "auto"
    battery_saver: bool = False
    max_celsius: float | None = None
    events: EventSink = ignore

    def __post_init__(self) -> None:
        for name, kind in LOADING.items():
            object.__setattr__(self, name, kind.check(name, getattr(self, name)))

    @property
    def n_threads(self) -> int | None:
        """None: as many as the machine's cores."""
        return None if isinstance(self.threads, str) else self.threads

    @property
    def memory_bytes(self) -> int | None:
        """Of the whole process; None: what is there."""
        return None if isinstance(self.memory, str) else self.memory


def load_options(given: MachineKeywords, names: Iterable[str] = tuple(LOADING)) -> LoadOptions:
    """Keyword arguments, of which only `names` are known, as options. UsageError for others, and for wrong values."""
    checked_keywords(given, names, "option")
    return LoadOptions(**given)
