"""What a run of a model whose experts are streamed has seen: kept when it ends, and what plans take of it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from edgerun.api.weights import hot_set_path
from edgerun.events import EventSink
from edgerun.formats.gguf import GgufFile
from edgerun.models import ModelSpec
from edgerun.planning.missing_reads import MissingReads, missing_reads
from edgerun.weights import Catalog, StreamedExpertStore
from edgerun.weights.last_run import LastRun, load_last_run, save_last_run

_LATELY_S = 7 * 86400  # a disk that fills or ages is no other one within a week
_LIKE_SLOTS = 0.1


def last_run_path(gguf: GgufFile) -> Path:
    """Where what a model's last run has seen is kept."""
    return hot_set_path(gguf).with_suffix(".run")


def keep_seen(store: StreamedExpertStore, gguf: GgufFile, catalog: Catalog, slots: int) -> None:
    """For plans of later runs. slots: experts that there was memory for. To be called before the store is closed."""
    seen = store.seen()
    if seen is None:
        return
    rate, routing = seen
    with contextlib.suppress(OSError):  # then plans are made of what is assumed
        device = missing_reads(gguf, catalog, packed=store.packed).path.stat().st_dev
        save_last_run(last_run_path(gguf), LastRun(time.time(), device, store.packed, slots, rate, routing))


def seen_lately(
    gguf: GgufFile,
    spec: ModelSpec,
    catalog: Catalog,
    reads: MissingReads,
    slots: int,
    events: EventSink,
    *,
    packed: bool,
) -> LastRun | None:
    """What the last run of the model here has seen, if something that tells of the next: its disk_bytes_per_s is 0
    where it read in another way or from another disk, had memory for clearly more or fewer experts, or was long ago."""
    found = load_last_run(last_run_path(gguf), spec.n_layers, catalog.n_experts, events)
    if found is None or [bool(ids) for ids in found.routing[0]] != [bool(layer.experts) for layer in catalog.layers]:
        return None
    is_alike = found.packed == packed and found.device == reads.path.stat().st_dev
    is_alike &= abs(found.slots - slots) <= _LIKE_SLOTS * slots
    is_recent = 0 <= time.time() - found.time_s < _LATELY_S
    return found if is_alike and is_recent else replace(found, disk_bytes_per_s=0.0)
