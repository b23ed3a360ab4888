"""What the library says while it works. Progress bars, meters and traces subscribe; nobody prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Progress:
    """A task that may take over a second: `done` of `total` `unit`s ("bytes", "kernels", "tensors", "tokens")."""

    task: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class PromptProcessed:
    """A prompt went through the model: `tokens` new ones after `reused_tokens` found in the KV cache."""

    tokens: int
    reused_tokens: int
    seconds: float


@dataclass(frozen=True)
class TokenGenerated:
    """One token was decoded. Of tokens of the same step (a draft's), the first has its seconds."""

    token_id: int
    seconds: float


@dataclass(frozen=True)
class TokensDrafted:
    """Guesses went through the model: `drafted` of one request in a step, the first `accepted` of which were right."""

    drafted: int
    accepted: int


@dataclass(frozen=True)
class TurnsLeft:
    """A chat outgrew its context: its oldest `turns` left just now, and the model sees the first `messages` (after the
    system's) no more."""

    turns: int
    messages: int


@dataclass(frozen=True)
class DeviceLoad:
    """A device of a group in the last moments: seconds of its own computing, of waiting for slower devices, of waiting
    for the wire, of waiting for its disk; what its process holds; a heartbeat's way there and back (0 for the head)."""

    name: str
    passes: int
    compute_s: float
    wait_s: float
    wire_s: float
    disk_s: float
    memory_bytes: int
    round_trip_s: float


@dataclass(frozen=True)
class DevicesChosen:
    """Who computes a model, the head first, and who waits since it is expected to be slower with them. Of a token, by
    the measured rates and links: token_s: so; alone_s: of the head alone, all_s: of all devices; None where the model
    does not fit these."""

    devices: tuple[str, ...]
    waiting: tuple[str, ...]
    token_s: float
    alone_s: float | None
    all_s: float | None


@dataclass(frozen=True)
class GroupWorked:
    """A group of devices computes, and did this since it was last said (twice a second). The head is the first device;
    slowest: whom the others wait for, "" for nobody."""

    devices: tuple[DeviceLoad, ...]
    slowest: str


@dataclass(frozen=True)
class ShareOpened:
    """A device of a group has loaded its share of a model. planned_bytes: the most that its process will hold; cached:
    the part of what it streams (experts or layers) that stays in memory, 1 where all of the share does."""

    planned_bytes: int
    cached: float


@dataclass(frozen=True)
class Notice:
    """Something that the user would want to know: what was chosen, or could not be, and why."""

    text: str


class Span(NamedTuple):
    """What somebody did from `begin_s` to `end_s` (`time.perf_counter`): for traces, which ask for spans. A tuple,
    because one is made for every token between two others.

    lane: who ("compute 1", "reader 2", "step", "waiting", "prefetch", "backend"); name: what; n_bytes: of what was
    read.
    """

    lane: str
    name: str
    begin_s: float
    end_s: float
    n_bytes: int = 0


SpanSink = Callable[[Span], None]
Event = (
    Progress
    | Notice
    | ShareOpened
    | DevicesChosen
    | GroupWorked
    | PromptProcessed
    | TokenGenerated
    | TokensDrafted
    | TurnsLeft
)
EventSink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The sink of those who do not listen."""


def never() -> bool:
    """The answer of a call that cannot be cancelled."""
    return False
