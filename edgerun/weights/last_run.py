"""What the last run of a model whose experts were streamed has seen: whom its tokens chose, and how fast the disk gave
what was missing. Plans of later runs are made of it: nothing in a file tells how evenly a mixture chooses, and a disk
is seldom as fast beside computing as when it is probed.

One small file per model in the cache directory, JSON of bounded size:

    {"version": 1, "time": seconds, "device": st_dev, "packed": bool, "slots": experts, "disk_bytes_per_s": number,
     "count": layers, "layers": [those with experts], "used": n, "routing": [[ids of a token, layer after layer], ...]}
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgerun.errors import FormatError
from edgerun.events import EventSink, ignore
from edgerun.kernels.interface import I32
from edgerun.paths import write_kept
from edgerun.weights.kept import parsed_kept

Routing = list[list[list[int]]]  # expert ids by token and layer, none of layers without experts

TOKENS = 96  # of the last run
LEAST_TOKENS, LEAST_BYTES = 16, 256 << 20  # tokens and bytes read of a run that tells something
_VERSION, _MOST_FILE_BYTES = 1, 4 << 20


@dataclass(frozen=True)
class LastRun:
    """time_s: when it ended; device: of the file system (st_dev) that was read; packed: from a pack file; slots:
    experts that there was memory for (reading to memory that was not used before is slower); routing: of its last
    tokens, computed one at a time, oldest first."""

    time_s: float
    device: int
    packed: bool
    slots: int
    disk_bytes_per_s: float
    routing: Routing


class RoutingNotes:
    """Which experts the last tokens chose that were computed one at a time. `layers`: how many the model has."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._tokens: deque[dict[int, I32]] = deque(maxlen=TOKENS)
        self._last = layers

    def note(self, layer: int, ids: I32) -> None:
        """(1, used) ids of a layer, which may be kept; of several rows nothing is noted."""
        if len(ids) != 1:
            self._last = self._layers
            return
        if layer <= self._last:
            self._tokens.append({})
        self._last = layer
        if self._tokens:
            self._tokens[-1][layer] = ids

    def routing(self) -> Routing:
        """Of tokens of which all is known."""
        tokens = list(self._tokens)
        most = max(map(len, tokens), default=0)
        return [
            [each[layer][0].tolist() if layer in each else [] for layer in range(self._layers)]
            for each in tokens
            if len(each) == most
        ]


def save_last_run(path: Path, run: LastRun) -> None:
    """Atomically. OSError when the folder cannot be written, or when others may write there."""
    first = run.routing[0]
    layers = [layer for layer, ids in enumerate(first) if ids]
    said = {
        "version": _VERSION,
        "time": run.time_s,
        "device": run.device,
        "packed": run.packed,
        "slots": run.slots,
        "disk_bytes_per_s": run.disk_bytes_per_s,
        "count": len(first),
        "layers": layers,
        "used": len(first[layers[0]]),
        "routing": [[each for layer in layers for each in token[layer]] for token in run.routing],
    }
    write_kept(path, [json.dumps(said, separators=(",", ":")).encode()])


def load_last_run(path: Path, layers: int, experts: int, events: EventSink = ignore) -> LastRun | None:
    """Of a model of so many layers, with so many experts each at most; None when there is none. One that is damaged is
    dropped with a Notice; one that others can have written is left alone, with a Notice."""
    return parsed_kept(
        path,
        lambda content: _parsed(content, layers, experts),
        most_bytes=_MOST_FILE_BYTES,
        what="what the last run has seen",
        events=events,
    )


def _parsed(content: bytes, layers: int, experts: int) -> LastRun:
    try:
        said = json.loads(content)
        if said["version"] != _VERSION:
            raise FormatError(f"it is of version {said['version']!r}")
        rate, at = float(said["disk_bytes_per_s"]), float(said["time"])
        device, packed = _whole(said["device"], 1 << 63), said["packed"] is True
        slots = _whole(said["slots"], 1 << 32)
        mixtures, used = said["layers"], _whole(said["used"], experts + 1)
        if said["count"] != layers or not used or not mixtures:
            raise FormatError(f"it is not of {layers} layers with experts")
        order = [_whole(each, layers) for each in mixtures]
        tokens = [_by_layer(each, order, layers, used, experts) for each in said["routing"]]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise FormatError(f"{type(error).__name__}") from None
    if not (math.isfinite(rate) and rate > 0 and math.isfinite(at)) or not 1 <= len(tokens) <= TOKENS:
        raise FormatError("not all of it are numbers")
    if order != sorted(set(order)):
        raise FormatError("its layers are in no order")
    return LastRun(at, device, packed, slots, rate, tokens)


def _by_layer(ids: Sequence[Any], mixtures: Sequence[int], layers: int, used: int, experts: int) -> list[list[int]]:
    if len(ids) != used * len(mixtures):
        raise FormatError("a token's experts are missing")
    known = [_whole(each, experts) for each in ids]
    found: list[list[int]] = [[] for _ in range(layers)]
    for at, layer in enumerate(mixtures):
        found[layer] = known[at * used : (at + 1) * used]
    return found


def _whole(number: object, end: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < end:
        raise FormatError(f"{number!r} is no number below {end}")
    return number
